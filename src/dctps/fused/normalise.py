"""`y = clamp((x - mean) / std * weight + bias + residual)` as a function for autograd, and its twin.

It saves x and four numbers for each channel; y only where a residual was added and an activation followed,
since otherwise x tells where the activation let y through. First derivatives are the kernel's; where a second
one may follow, or gradients come in batches, they are the twin's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dctps.kernels.norm import NO_BOUNDS, Bounds, norm_backward, norm_forward
from dctps.product.function import is_ordinary

_DIMS = (0, 2, 3)


class _Normalise(Function):
    """The result; or, given a `Waiting`, the place in autograd's graph of the result that it stands for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        waiting: Tensor | None,
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


# Arguments as of `forward`. Without torch's look at transforms, under which nothing of this is used.
normalise: Any = super(Function, _Normalise).apply


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
