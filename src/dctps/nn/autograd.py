"""The paths as autograd functions, which save x and nothing else of the forward pass.

Native code has first derivatives alone: where a second may follow, or where batching transforms are at work,
the torch paths' derivatives, which are differentiable themselves, take its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function

from dctps.nn.depthwise import is_by_channels
from dctps.nn.maps import Conv2d, Linear
from dctps.nn.native import is_traced, native_backward, native_product, rounded
from dctps.nn.native_conv import (
    layout_of,
    native_conv,
    native_conv_backward,
    native_dense_conv,
    native_dense_conv_backward,
    native_weight,
)
from dctps.nn.precision import no_autocast
from dctps.nn.torch_paths import (
    Gradients,
    Needs,
    dense_backward,
    dense_product,
    transform_backward,
    transform_product,
)
from dctps.nn.weight import Weight
from dctps.offsets import Offset

Found = tuple[Tensor | None, ...]


class TransformProduct(Function):
    """`transform_product`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor, offset: Offset) -> Tensor:
        return transform_product(x, Weight(values, alpha, support, offset))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *parts = inputs
        _save(ctx, x, Weight(*parts))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Found:
        return (*transform_backward(g, *_saved(ctx), ctx.needs_input_grad[:3]), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _product_rule(TransformProduct, ctx, tangents)


class DenseProduct(Function):
    """`dense_product`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        op: Linear | Conv2d,
    ) -> Tensor:
        return dense_product(x, Weight(values, alpha, support, offset), op)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *parts, ctx.op = inputs
        _save(ctx, x, Weight(*parts))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Found:
        found = dense_backward(g, *_saved(ctx), ctx.op, ctx.needs_input_grad[:3])
        return (*found, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _product_rule(DenseProduct, ctx, tangents, ctx.op)


class NativeProduct(Function):
    """`native_product`: alpha * D x + S x + b on rows.

    Without the hooks for batching transforms, which are not at work where this is used: they would cost
    several times the call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        bias: Tensor | None,
    ) -> Tensor:
        weight = Weight(values, alpha, support, offset)
        _save(ctx, x, weight)
        return native_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Found:
        x, weight = _saved(ctx)
        needs, need_bias = ctx.needs_input_grad[:3], ctx.needs_input_grad[5]
        if is_traced(g, x):
            by_bias = g.sum(0) if need_bias else None
            if is_legacy_batchedtensor(g):  # views have no batching rule for the transform
                return (*dense_backward(g, x, weight, Linear(), needs), None, None, by_bias)
            return (*transform_backward(g, x, weight, needs), None, None, by_bias)
        *found, by_bias = native_backward(g, x, weight, (*needs, need_bias))
        return (*found, None, None, by_bias)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        d_x, d_values, d_alpha, *_, d_bias = tangents
        if d_x is None and d_values is None and d_alpha is None:
            d_x = torch.zeros_like(ctx.saved_tensors[0])
        d_y = _product_rule(TransformProduct, ctx, (d_x, d_values, d_alpha))
        return d_y if d_bias is None else d_y + d_bias.to(d_y.dtype)


class NativeConv(Function):
    """The convolution plus b by native code: on strips, or by a W made for it, which depthwise ones keep."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        op: Conv2d,
        dense: bool,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.op, ctx.dense = op, dense
        weight = Weight(values, alpha, support, offset)
        made = rounded(native_weight(weight, layout_of(x)), x) if dense else None
        _save(ctx, x, weight, made if is_by_channels(x, op, offset.shape[0]) else None)
        return native_conv(x, weight, op, bias) if made is None else native_dense_conv(x, made, op, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Found:
        x, weight = _saved(ctx)
        needs = ctx.needs_input_grad[:3]
        if is_traced(g, x):
            found = dense_backward(g, x, weight, ctx.op, needs)
        else:
            found = native_conv_product_backward(g, x, weight, ctx.op, ctx.dense, needs, ctx.saved_tensors[4])
        return (*found, None, None, None, None, g.sum((0, 2, 3)) if ctx.needs_input_grad[7] else None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *rest, d_bias = tangents
        if all(t is None for t in rest):
            rest[0] = torch.zeros_like(ctx.saved_tensors[0])
        d_y = _product_rule(DenseProduct, ctx, tuple(rest), ctx.op)
        return d_y if d_bias is None else d_y + d_bias.to(d_y.dtype)[:, None, None]


def native_conv_product_backward(
    g: Tensor, x: Tensor, weight: Weight, op: Conv2d, dense: bool, needs: Needs, made: Tensor | None = None
) -> Gradients:
    """The derivatives of `NativeConv` in x, values and alpha, those that are needed; `made`: W, if kept."""
    with no_autocast(x):
        if dense:
            return native_dense_conv_backward(g, x, weight, op, needs, made)
        return native_conv_backward(g, x, weight, op, needs)


def _save(ctx: Any, x: Tensor, weight: Weight, made: Tensor | None = None) -> None:
    values, alpha, support, ctx.offset = weight
    ctx.save_for_backward(x, values, alpha, support, made)
    ctx.save_for_forward(x, values, alpha, support, made)


def _saved(ctx: Any) -> tuple[Tensor, Weight]:
    x, values, alpha, support, _ = ctx.saved_tensors
    return x, Weight(values, alpha, support, ctx.offset)


def _product_rule(
    function: type[Function], ctx: Any, tangents: tuple[Tensor | None, ...], *constants: Any
) -> Tensor:
    """The forward derivative of a map that is linear in x, and linear in (values, alpha) together."""
    x, (values, alpha, support, offset) = _saved(ctx)
    d_x, d_values, d_alpha = tangents[:3]
    terms: list[Tensor] = []
    if d_x is not None:
        terms.append(function.apply(d_x, values, alpha, support, offset, *constants))
    if d_values is not None or d_alpha is not None:
        d_values = torch.zeros_like(values) if d_values is None else d_values
        d_alpha = torch.zeros_like(alpha) if d_alpha is None and alpha is not None else d_alpha
        terms.append(function.apply(x, d_values, d_alpha, support, offset, *constants))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]
