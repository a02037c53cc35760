"""A batch normalisation that waits for what is done to it next, so that one pass over memory does it all.

`Norm.wait` gives a `Waiting`: the result that has not been computed. An addition joins it, an activation ends it,
both in one native call; anything else computes the result first, and goes on as ever. So nothing has to be known of
the code around the layer, and nothing in it changes.

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

from dctps.kernels.norm import NO_BOUNDS, RELU, RELU6, Bounds, norm_backward, norm_forward
from dctps.product.function import is_ordinary

_as_plain = torch._C.DisableTorchFunctionSubclass
_DIMS = (0, 2, 3)


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
            y: Tensor = _apply(*self[:3], residual, None, self.table, bounds, self.training, None)
            return y
        return norm_forward(self.x, self.table, bounds, residual)

    def wait(self, told: Callable[[str], None], *, through_additions: bool) -> Waiting:
        """The result, to be computed when it is known what follows.

        Args:
            told: is called with what did: `"activation"`, `"addition"` or `"other"`.
            through_additions: whether to wait after one.
        """
        waiting = Waiting(self.x)
        waiting.norm, waiting.residual, waiting.value = self, None, None
        waiting.told, waiting.through_additions = told, through_additions
        waiting.begun = _modes()
        waiting.input_version = _version(self.x)
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


class _Normalise(Function):
    """`Norm.result`; or, given a `Waiting`, that one's place in autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        waiting: Waiting | None,
        table: Tensor,
        bounds: Bounds,
        training: bool,
        value: Tensor | None,
    ) -> Tensor:
        ctx.bounds, ctx.training = bounds, training
        if waiting is None:
            value = y = norm_forward(x, table, bounds, residual)
        else:
            y = waiting
            ctx.mark_dirty(waiting)
        # Without a residual x alone tells where the activation let y through.
        ctx.save_for_backward(x, weight, table, None if residual is None or bounds is NO_BOUNDS else value)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, table, y = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or not is_ordinary(g, x):
            found = gradients(g, x, weight, table, ctx.bounds, y, training=ctx.training)
            return (*(t if need else None for t, need in zip(found, needs, strict=True)), *5 * (None,))
        return (
            *norm_backward(g, x, table, ctx.bounds, y, training=ctx.training, needs=needs),
            *5 * (None,),
        )


_apply: Any = super(Function, _Normalise).apply  # without a look at transforms, under which nothing waits


def gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    table: Tensor,
    bounds: Bounds,
    y: Tensor | None,
    *,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`norm_backward` in torch operations: of any dtype, for batches of gradients, differentiable in g and x.

    Args:
        g: the result's gradient.
        x: as for `norm_backward`, and so are all others.
        weight: of the table, or None for 1.
        table: see `x`.
        bounds: see `x`.
        y: see `x`.
        training: see `x`.

    Returns:
        The derivatives in x, weight, bias and residual.
    """
    mean, inverse, scale, bias = (t[:, None, None] for t in table.to(x.dtype))
    with torch.no_grad():
        y = (x - mean) * scale + bias if y is None else y
        shut = (y <= bounds.lower) | (y >= bounds.upper)
    g = torch.where(shut, torch.zeros((), dtype=x.dtype, device=x.device), g)
    apart = x - mean
    if training:  # once more, as functions of x
        apart = x - x.mean(_DIMS, keepdim=True)
        variance = (apart * apart).mean(_DIMS, keepdim=True)
        inverse = (variance - variance.detach() + inverse**-2).rsqrt()
    normalised = apart * inverse
    in_x = g
    if training:
        in_x = g - g.mean(_DIMS, keepdim=True) - normalised * (g * normalised).mean(_DIMS, keepdim=True)
    in_x = in_x * (inverse if weight is None else inverse * weight[:, None, None])
    return in_x, (g * normalised).sum(_DIMS), g.sum(_DIMS), g


class Waiting(Tensor):
    """The result of a normalisation that nobody has needed so far; made by `Norm.wait`.

    Attributes:
        norm: whose result it is; None once that is computed.
        residual: added already, or None.
        value: the result, once it is computed.
        told: is called with what followed.
        through_additions: whether it waits after one.
        begun: torch's modes when it was made.
        input_version: of the norm's x.
        known: its place in autograd's graph, as this module left it.
    """

    norm: Norm | None
    residual: Tensor | None
    value: Tensor | None
    told: Callable[[str], None]
    through_additions: bool
    begun: tuple[bool, bool]
    input_version: int
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
        elif func in _ADDITIONS and len(args) == 2 and not kwargs:  # noqa: PLR2004 (a + b)
            found = _added(*args, in_place=_ADDITIONS[func])
        else:
            found = None
        if found is not None:
            return found
        return func(*tree_map_only(Waiting, settled, args), **tree_map_only(Waiting, settled, kwargs))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """An operation that autograd has recorded, on the numbers."""
        args, kwargs = tree_map_only(Waiting, lambda waiting: waiting.computed().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def record(self, bounds: Bounds = NO_BOUNDS) -> None:
        """Give it its place in autograd's graph: the result as it now is, of all that it comes from."""
        norm = self.norm
        assert norm is not None
        with _as_plain():
            if norm._trains(self.residual):
                value = None if self.value is None else self.value.detach()
                _apply(*norm[:3], self.residual, self, norm.table, bounds, norm.training, value)
            self.known = self._place()

    def is_own(self) -> bool:
        """Whether its place in the graph is still the one that it was given here, and saves tensors as here."""
        with _as_plain():
            return self.known == self._place()

    def _place(self) -> tuple[Any, ...]:
        """What changes with it; within a checkpoint torch saves tensors in another way than behind it."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return self.requires_grad, _version(self), hooks

    def is_open(self) -> bool:
        """Whether it still waits, in the modes in which it was made."""
        return self.value is None and self.begun == _modes() and self.is_own()

    def end(self, bounds: Bounds, followed: str, *, in_place: bool = False) -> Tensor:
        """The result of what followed; `in_place`: whoever has this object sees that result in it."""
        norm = self.norm
        assert norm is not None
        self.told(followed)
        if _version(norm.x) != self.input_version:
            raise RuntimeError(
                "the input of a fused BatchNorm2d was changed in place before its result was needed: "
                "dctps.unfuse_(model) gives the plain layer back"
            )
        y = norm.result(bounds, self.residual)
        if in_place:
            self.value = y
            self.record(bounds)
            self.norm = self.residual = None
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
            self.norm = self.residual = None
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
    return x.computed() if x.is_own() else _Taken.apply(x)


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
    waiting, other = (a, b) if a_waits else (b, a)
    other = settled(other)
    x = waiting.norm.x
    if not isinstance(other, Tensor) or not is_ordinary(other):
        return None
    if other.shape != x.shape or other.stride() != x.stride() or other.dtype != x.dtype or not other.is_cpu:
        return None
    if not in_place:
        waiting = waiting.norm.wait(waiting.told, through_additions=waiting.through_additions)
    waiting.residual = other
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
