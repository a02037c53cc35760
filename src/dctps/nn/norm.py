"""BatchNorm2d by the native kernel, together with the addition and the activation behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

from dctps.kernels import variant
from dctps.kernels.norm import norm_statistics
from dctps.nn.waiting import Norm, settled
from dctps.product.function import is_ordinary

_FEW = 64  # pixels of an image in NCHW below which torch's own kernels are as fast


class FusedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, which an addition and an activation behind it join in one pass over memory.

    `dctps.fuse_` makes it of an `nn.BatchNorm2d`: parameters, buffers and results are that one's. Its
    result waits for the next operation (`dctps.nn.waiting`); what follows at the first calls decides for how
    long it waits in later ones, and changes no number. What the kernel does not take goes to torch: other
    dtypes and devices, compilers and exports, transforms of `torch.func`, forward-mode derivatives.
    """

    waits_for = "activation"  # or "addition", or "nothing": what has followed so far

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(batch, channels, rows, columns) -> the same, as torch's."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        x = settled(input)
        training = self.training or (self.running_mean is None and self.running_var is None)
        if not self._is_taken(x, training):
            return super().forward(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        running = self.running_mean, self.running_var
        if self.training and not self.track_running_stats:
            running = None, None
        table = norm_statistics(
            x, self.weight, self.bias, running, training=training, momentum=momentum, epsilon=self.eps
        )
        if training:
            moved = [t for t in running if t is not None and not t.is_inference()]
            torch.autograd.graph.increment_version(moved)
        norm = Norm(x, self.weight, self.bias, table, training)
        if self.waits_for == "nothing" or self._is_watched():
            return norm.result()
        return norm.wait(self._learn, through_additions=self.waits_for == "activation")

    def _is_taken(self, x: Tensor, training: bool) -> bool:
        """Whether the kernel computes what torch would; it leaves the refusals to torch."""
        own = [self.weight, self.bias, self.running_mean, self.running_var]
        tensors = [x, *(t for t in own if t is not None)]
        if not is_ordinary(*tensors) or torch._C._len_torch_function_stack() or torch._C._is_tracing():
            return False
        if variant() == "off" or forward_ad._current_level >= 0 or x.dim() != 4 or not x.numel():
            return False
        if not all(t.dtype == torch.float32 and t.is_cpu and t.layout == torch.strided for t in tensors):
            return False
        channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
        if any(t.shape != (channels,) or not t.is_contiguous() for t in tensors[1:]):
            return False
        if training and len(x) * pixels == 1:
            return False
        if (self.running_mean is None) != (self.running_var is None):
            return False
        if x.is_contiguous(memory_format=torch.channels_last):
            return True
        return x.is_contiguous() and pixels >= _FEW

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
