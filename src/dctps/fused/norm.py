"""BatchNorm2d by the native kernel, together with the addition and the activation behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

from dctps.fused.waiting import Norm, settled
from dctps.kernels import variant
from dctps.kernels.norm import norm_statistics
from dctps.product.function import is_ordinary

_PLAIN = (Tensor, nn.Parameter)
_FEW = 64  # pixels of an image in NCHW below which torch's own kernels are as fast
_SMALL = 1 << 16  # numbers below which a call costs more than it saves; in evaluation twice as many


class FusedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, which an addition and an activation behind it join in one pass over memory.

    `dctps.fuse_` makes it of an `nn.BatchNorm2d`: parameters, buffers and results are that one's. Its
    result waits for the next operation (`dctps.fused.waiting`); what follows at the first calls decides for
    how long it waits in later ones, and changes no number. What the kernel does not take goes to torch: other
    dtypes and devices, compilers and exports, transforms of `torch.func`, forward-mode derivatives.
    """

    waits_for = "activation"  # or "addition", or "nothing": what has followed so far

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, rows, columns) -> the same, as torch's."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        x = settled(input)
        weight, bias, running = self.weight, self.bias, (self.running_mean, self.running_var)
        training = self.training or (running[0] is None and running[1] is None)
        if not self._is_taken(x, training, weight, bias, *running):
            return super().forward(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        if self.training and not self.track_running_stats:
            running = None, None
        table = norm_statistics(
            x, weight, bias, running, training=training, momentum=momentum, epsilon=self.eps
        )
        if training:
            moved = [t for t in running if t is not None and not t.is_inference()]
            torch.autograd.graph.increment_version(moved)
        norm = Norm(x, weight, bias, table, training)
        if self.waits_for == "nothing" or self._is_watched():
            return norm.result()
        return norm.wait(self._learn, through_additions=self.waits_for == "activation")

    def _is_taken(self, x: Tensor, training: bool, *own: Tensor | None) -> bool:  # noqa: PLR0911 (a list of reasons)
        """Whether the kernel computes what torch would, and faster; it leaves the refusals to torch."""
        if not is_ordinary(x) or torch._C._len_torch_function_stack() or torch._C._is_tracing():
            return False
        if x.dtype is not torch.float32 or not x.is_cpu or x.layout is not torch.strided or x.dim() != 4:
            return False
        batch, channels, rows, columns = x.shape
        pixels = rows * columns
        few = batch * channels * pixels < (_SMALL if training else 2 * _SMALL)
        if few or (training and batch * pixels == 1):
            return False
        in_rows = x.is_contiguous(memory_format=torch.channels_last)
        if not in_rows and (pixels < _FEW or not x.is_contiguous()):
            return False
        for t in own:
            if t is not None and not (
                type(t) in _PLAIN and t.dtype is torch.float32 and t.is_cpu and t.shape == (channels,)
            ):
                return False
        if (own[2] is None) != (own[3] is None) or not all(t is None or t.is_contiguous() for t in own[2:]):
            return False
        return forward_ad._current_level < 0 and variant() != "off"

    def _is_watched(self) -> bool:
        """Whether hooks are to see the result."""
        return bool(
            self._forward_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
            or _module._global_forward_hooks
            or _module._global_backward_hooks
            or _module._global_backward_pre_hooks
        )

    def _learn(self, followed: str) -> None:
        """Wait no longer than for what there is."""
        if followed == "other":
            self.waits_for = "nothing"
        elif followed == "addition":
            self.waits_for = "addition"
