"""The layers' products as two torch operators, for `torch.compile`.

A compiler that saw inside would find that forward and backward make the same W, make it once, and keep it
from the one to the other. As opaque calls they keep x alone, compute what eager mode computes bit for
bit, and choose their path when called, so that a batch of another size is no reason to compile again.

Results and gradients of images are in channels-last order where x is, and contiguous otherwise. The fake
versions, from which a compiler plans the memory, say the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import library as torch_library

from dctps.offsets import Offset, offset_of
from dctps.product.function import choose
from dctps.product.geometry import ROWS, ConvGeometry, conv_geometry, layout_of
from dctps.product.precision import no_autocast
from dctps.product.rule import Backend
from dctps.product.weight import Weight

_library = torch_library.Library("dctps", "FRAGMENT")
_ARGUMENTS = (
    "Tensor x, Tensor values, Tensor? alpha, Tensor support, str offset, int[] window, str backend, "
    "bool training"
)
_library.define(f"product({_ARGUMENTS}) -> Tensor")
_library.define(
    f"product_backward(Tensor g, {_ARGUMENTS}, bool need_x, bool need_values, bool need_alpha) "
    "-> (Tensor, Tensor, Tensor)"
)


def _window(offset: Offset, window: list[int]) -> ConvGeometry:
    top, left, up, side, down, across = window
    return conv_geometry(offset.shape, (top, left), (up, side), (down, across), offset.groups)


def _layout(x: Tensor) -> torch.memory_format:
    return layout_of(x) if x.dim() == 4 else torch.contiguous_format


@torch_library.impl(_library, "product", "CompositeExplicitAutograd")
def _product(
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    spec: str,
    window: list[int],
    backend: Backend,
    training: bool,
) -> Tensor:
    weight = Weight(values, alpha, support, offset_of(spec))
    geometry = _window(weight.offset, window) if window else ROWS
    with torch.no_grad(), no_autocast(x):
        path, _ = choose(x, weight, geometry, backend, training)
        y = path.forward(x, weight, geometry, None, None)
    return y.contiguous(memory_format=_layout(x))


@torch_library.impl(_library, "product_backward", "CompositeExplicitAutograd")
def _product_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    spec: str,
    window: list[int],
    backend: Backend,
    training: bool,
    need_x: bool,
    need_values: bool,
    need_alpha: bool,
) -> tuple[Tensor, ...]:
    weight = Weight(values, alpha, support, offset_of(spec))
    geometry = _window(weight.offset, window) if window else ROWS
    needs = need_x, need_values, need_alpha, False
    with torch.no_grad(), no_autocast(x):
        path, _ = choose(x, weight, geometry, backend, training)
        grad_x, *others, _ = path.backward(g, x, weight, geometry, None, needs)
    empty = x.new_empty(0)
    grad_x = empty if grad_x is None else grad_x.contiguous(memory_format=_layout(x))
    return grad_x, *(empty if grad is None else grad.contiguous() for grad in others)


@torch_library.register_fake("dctps::product", lib=_library)  # type: ignore[untyped-decorator]
def _product_fake(
    x: Tensor,
    values: Tensor,
    alpha: Any,
    support: Tensor,
    spec: str,
    window: list[int],
    backend: str,
    training: bool,
) -> Tensor:
    offset = offset_of(spec)
    if not window:
        return x.new_empty(x.shape[0], offset.out_features)
    geometry = _window(offset, window)
    return torch.empty(geometry.outputs(x), dtype=x.dtype, device=x.device, memory_format=_layout(x))


@torch_library.register_fake("dctps::product_backward", lib=_library)  # type: ignore[untyped-decorator]
def _product_backward_fake(
    g: Tensor, x: Tensor, values: Tensor, alpha: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *_, need_x, need_values, need_alpha = rest
    grad_x = torch.empty_like(x, memory_format=_layout(x)) if need_x else x.new_empty(0)
    needed = ((values, need_values), (alpha, need_alpha))
    others = (t.new_empty(t.shape) if need and t is not None else x.new_empty(0) for t, need in needed)
    return grad_x, *others


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.constants = inputs[4:]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    found = torch.ops.dctps.product_backward(g, *ctx.saved_tensors, *ctx.constants, *needs)
    grads = (grad if need else None for grad, need in zip(found, needs, strict=True))
    return (*grads, None, None, None, None, None)


torch_library.register_autograd("dctps::product", _backward, setup_context=_setup_context, lib=_library)
