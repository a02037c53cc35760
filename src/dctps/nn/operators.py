"""The layers' products as two torch operators, for `torch.compile`.

A compiler that saw inside would find that forward and backward make the same W, make it once, and keep it
from the one to the other. As opaque calls they keep x alone, compute what eager mode computes bit for
bit, and choose their path when called, so that a batch of another size is no reason to compile again.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor

from dctps.nn.dispatch import Backend
from dctps.nn.maps import Conv2d, Linear
from dctps.nn.precision import no_autocast
from dctps.nn.products import product, product_backward
from dctps.nn.weight import Weight
from dctps.offsets import Offset, build_offset
from dctps.transforms.tables import constant_to_compilers

_library = torch.library.Library("dctps", "FRAGMENT")
_ARGUMENTS = "Tensor x, Tensor values, Tensor? alpha, Tensor support, str offset, int[] window, str backend"
_library.define(f"product({_ARGUMENTS}) -> Tensor")
_library.define(
    f"product_backward(Tensor g, {_ARGUMENTS}, bool need_x, bool need_values, bool need_alpha) "
    "-> (Tensor, Tensor, Tensor)"
)


def compiled_product(x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend) -> Tensor:
    """`product` as one operator with a first derivative."""
    window = [*op.stride, *op.padding, *op.dilation] if isinstance(op, Conv2d) else []
    values, alpha, support, offset = weight
    y: Tensor = torch.ops.dctps.product(x, values, alpha, support, _spec(offset), window, backend)
    return y


@constant_to_compilers
def _spec(offset: Offset) -> str:
    return json.dumps(offset.spec)


@functools.lru_cache(maxsize=1024)
def _offset(spec: str) -> Offset:
    """The offset of a spec, with its draws; O(m + n) numbers each, for as many layers as are in use."""
    return build_offset(**json.loads(spec))


def _op(offset: Offset, window: list[int]) -> Linear | Conv2d:
    if not window:
        return Linear()
    top, left, up, side, down, across = window
    return Conv2d((top, left), (up, side), (down, across), offset.groups)


@torch.library.impl(_library, "product", "CompositeExplicitAutograd")
def _product(
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    spec: str,
    window: list[int],
    backend: Backend,
) -> Tensor:
    weight = Weight(values, alpha, support, _offset(spec))
    with torch.no_grad(), no_autocast(x):
        y = product(x, weight, _op(weight.offset, window), backend)
    return y.contiguous()


@torch.library.impl(_library, "product_backward", "CompositeExplicitAutograd")
def _product_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    spec: str,
    window: list[int],
    backend: Backend,
    need_x: bool,
    need_values: bool,
    need_alpha: bool,
) -> tuple[Tensor, ...]:
    weight, needs = Weight(values, alpha, support, _offset(spec)), (need_x, need_values, need_alpha)
    with torch.no_grad():
        found = product_backward(g, x, weight, _op(weight.offset, window), backend, needs)
    return tuple(x.new_empty(0) if by is None else by.contiguous() for by in found)


@torch.library.register_fake("dctps::product", lib=_library)  # type: ignore[untyped-decorator]
def _product_fake(
    x: Tensor, values: Tensor, alpha: Any, support: Tensor, spec: str, window: list[int], backend: str
) -> Tensor:
    offset = _offset(spec)
    if not window:
        return x.new_empty(x.shape[0], offset.out_features)
    sizes = [
        (x.shape[2 + axis] + 2 * window[2 + axis] - window[4 + axis] * (offset.shape[2 + axis] - 1) - 1)
        // window[axis]
        + 1
        for axis in (0, 1)
    ]
    return x.new_empty(x.shape[0], offset.out_features, *sizes)


@torch.library.register_fake("dctps::product_backward", lib=_library)  # type: ignore[untyped-decorator]
def _product_backward_fake(
    g: Tensor, x: Tensor, values: Tensor, alpha: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *_, need_x, need_values, need_alpha = rest
    needed = ((x, need_x), (values, need_values), (alpha, need_alpha))
    return tuple(t.new_empty(t.shape) if need and t is not None else x.new_empty(0) for t, need in needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.constants = inputs[4:]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    found = torch.ops.dctps.product_backward(g, *ctx.saved_tensors, *ctx.constants, *needs)
    return (*(by if need else None for by, need in zip(found, needs, strict=True)), None, None, None, None)


torch.library.register_autograd("dctps::product", _backward, setup_context=_setup_context, lib=_library)
