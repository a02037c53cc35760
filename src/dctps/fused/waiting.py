"""A batch normalisation that waits for what is done to it next, so that one pass over memory does it all.

`Norm.wait` gives a `Waiting`: the result that has not been computed. An addition joins it, an activation ends
it, both in one native call; anything else computes the result first, and goes on as ever. So nothing has to
be known of the code around the layer, and nothing in it changes.

For autograd a `Waiting` is the result of the normalisation like any other. What no Python function announces
(an `autograd.Function`, C++) works with it through that, and finds the numbers when it asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_map_only

from dctps.fused.normalise import normalise
from dctps.kernels.norm import NO_BOUNDS, RELU, RELU6, Bounds, norm_forward
from dctps.product.function import is_ordinary

_as_plain = torch._C.DisableTorchFunctionSubclass


class Norm(NamedTuple):
    """A normalisation whose statistics have been taken.

    Attributes:
        x: float32 (batch, channels, rows, columns).
        weight: (channels,), or None for 1.
        bias: (channels,), or None for 0.
        table: of `norm_statistics`.
        training: whether the statistics are the batch's.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    table: Tensor
    training: bool

    def result(self, bounds: Bounds = NO_BOUNDS, residual: Tensor | None = None) -> Tensor:
        """y = clamp((x - mean) / std * weight + bias + residual), differentiable."""
        if self._trains(residual):
            y: Tensor = normalise(*self[:3], residual, None, self.table, bounds, self.training, None)
            return y
        return norm_forward(self.x, self.table, bounds, residual)

    def wait(self, learn: Callable[[str], None], *, through_additions: bool) -> Waiting:
        """The result, to be computed when it is known what follows.

        Args:
            learn: is called with what followed: `"activation"`, `"addition"` or `"other"`.
            through_additions: whether to wait after one.
        """
        waiting = Waiting(self.x)
        waiting.source, waiting.residual, waiting.value = self, None, None
        waiting.learn, waiting.through_additions = learn, through_additions
        waiting.begun = _modes()
        waiting.versions = _version(self.x), 0
        waiting.record()
        return waiting

    def _trains(self, residual: Tensor | None) -> bool:
        x, weight, bias = self.x, self.weight, self.bias
        return torch.is_grad_enabled() and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
            or (residual is not None and residual.requires_grad)
        )


class Waiting(Tensor):
    """The result of a normalisation that nobody has needed so far; made by `Norm.wait`.

    Attributes:
        source: whose result it is; None once that is computed.
        residual: added already, or None.
        value: the result, once it is computed.
        learn: is called with what followed.
        through_additions: whether it waits after one.
        begun: torch's modes when it was made.
        versions: of the source's x and of the residual.
        known: its place in autograd's graph, as this module left it.
    """

    source: Norm | None
    residual: Tensor | None
    value: Tensor | None
    learn: Callable[[str], None]
    through_additions: bool
    begun: tuple[bool, bool]
    versions: tuple[int, int]
    known: tuple[Any, ...]

    @staticmethod
    def __new__(cls, x: Tensor) -> Waiting:
        """Like x, without memory."""
        made: Waiting = Tensor._make_wrapper_subclass(
            cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
        )
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            with _as_plain():
                return func(*args, **kwargs)
        if func in _ACTIVATIONS:
            found = _activated(func, *args, **kwargs)
        elif func in _ADDITIONS and len(args) == 2 and not kwargs:
            found = _added(*args, in_place=_ADDITIONS[func])
        else:
            found = None
        if found is not None:
            return found
        return func(*tree_map_only(Waiting, settled, args), **tree_map_only(Waiting, settled, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """An operation that autograd has recorded, on the numbers."""
        args, kwargs = tree_map_only(
            Waiting, lambda waiting: waiting.computed().detach(), (args, kwargs or {})
        )
        return func(*args, **kwargs)

    def record(self, bounds: Bounds = NO_BOUNDS) -> None:
        """Give it its place in autograd's graph: the result as it now is, of all that it comes from."""
        source = self.source
        assert source is not None
        with _as_plain():
            if source._trains(self.residual):
                value = None if self.value is None else self.value.detach()
                normalise(*source[:3], self.residual, self, source.table, bounds, source.training, value)
            self.known = self._place()

    def is_own(self) -> bool:
        """Whether its place in the graph is still the one that it was given here."""
        with _as_plain():
            return self.known == self._place()

    def _place(self) -> tuple[Any, ...]:
        """What changes with it; in a checkpoint torch saves tensors in another way than behind it."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return self.requires_grad, _version(self), hooks

    def is_open(self) -> bool:
        """Whether it still waits, in the modes in which it was made."""
        return self.value is None and self.begun == _modes() and self.is_own()

    def end(self, bounds: Bounds, followed: str, *, in_place: bool = False) -> Tensor:
        """The result of what followed; `in_place`: whoever has this object sees that result in it."""
        source = self.source
        assert source is not None
        self.learn(followed)
        if self.versions != (_version(source.x), 0 if self.residual is None else _version(self.residual)):
            raise RuntimeError(
                "the input of a fused BatchNorm2d, or what was added to its result, was changed in place "
                "before the result was needed: dctps.unfuse_(model) gives the plain layer back"
            )
        y = source.result(bounds, self.residual)
        if in_place:
            self.value = y
            self.record(bounds)
            self.source = self.residual = None
        return y

    def computed(self) -> Tensor:
        """The result itself."""
        if self.value is None:
            with ExitStack() as stack:
                if self.begun != _modes():
                    grad, inference = self.begun
                    stack.enter_context(torch.inference_mode(inference))
                    stack.enter_context(torch.set_grad_enabled(grad))
                self.value = self.end(NO_BOUNDS, "other" if self.residual is None else "addition")
            self.source = self.residual = None
        return self.value


class _Taken(Function):
    """The numbers of a `Waiting` that has got another place in the graph than its own."""

    @staticmethod
    def forward(ctx: Any, waiting: Waiting) -> Tensor:
        return waiting.computed().detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def settled(x: Tensor) -> Tensor:
    """x itself, computed if it was waiting."""
    if type(x) is not Waiting:
        return x
    if x.is_own():
        return x.computed()
    y: Tensor = _Taken.apply(x)  # type: ignore[no-untyped-call]
    return y


def _activated(
    func: Any, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor | None:
    """An activation of x; None: x does not wait."""
    if type(x) is not Waiting or not x.is_open():
        return None
    bounds, in_place = _ACTIVATIONS[func]
    if bounds is None:
        bounds = Bounds(float(min_val), float(max_val))
    return x.end(bounds, "activation", in_place=in_place or inplace)


def _added(a: Any, b: Any, *, in_place: bool) -> Tensor | None:
    """a + b, into what waits: one of them that can take the other along; None: neither can."""
    a_waits, b_waits = (type(t) is Waiting and t.residual is None and t.is_open() for t in (a, b))
    if a is b or not (a_waits or (b_waits and not in_place)):
        return None
    waiting: Waiting = a if a_waits else b
    other, source = settled(b if a_waits else a), waiting.source
    if not isinstance(other, Tensor) or not is_ordinary(other) or source is None:
        return None
    x = source.x
    if other.shape != x.shape or other.stride() != x.stride() or other.dtype != x.dtype or not other.is_cpu:
        return None
    if not in_place:
        waiting = source.wait(waiting.learn, through_additions=waiting.through_additions)
    waiting.residual, waiting.versions = other, (waiting.versions[0], _version(other))
    if not waiting.through_additions:
        return waiting.end(NO_BOUNDS, "addition", in_place=in_place)
    waiting.record()
    return waiting


def _modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


# Functions, the bounds of what they let through, and whether they work in place.
_ACTIVATIONS: dict[Any, tuple[Bounds | None, bool]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), (RELU, False)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), (RELU, True)),
    F.relu6: (RELU6, False),
    F.hardtanh: (None, False),
}
_ADDITIONS = {torch.add: False, Tensor.add: False, Tensor.add_: True}  # and whether in place
# What asks for no number.
_LOOKS = {
    *(Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point),
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cpu", "is_cuda")
    ),
}
