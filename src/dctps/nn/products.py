"""The products behind the layers, each by its path."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.nn.autograd import (
    DenseProduct,
    NativeConv,
    NativeProduct,
    TransformProduct,
    native_conv_product_backward,
)
from dctps.nn.dispatch import Backend
from dctps.nn.kept_weight import made_weight
from dctps.nn.maps import Conv2d, Linear, flat, unflat
from dctps.nn.native import native_backward, rounded
from dctps.nn.native_conv import layout_of
from dctps.nn.paths import choose_path
from dctps.nn.torch_paths import Gradients, Needs, dense_backward, transform_backward
from dctps.nn.weight import Weight


def product(
    x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend, bias: Tensor | None = None
) -> Tensor:
    """`op` on x with W = alpha * D + S, plus b, by the path that `backend` names or the rule chooses."""
    path, way = choose_path(x, weight, op, backend)
    # In half precision the sum is rounded before b is added, as compiled layers do.
    fused = bias if bias is None or x.dtype == bias.dtype == torch.float32 else None
    y: Tensor
    if isinstance(op, Conv2d) and way in ("strips", "made", "kept"):
        if way == "kept":
            y = op.apply(x, rounded(made_weight(weight, layout_of(x)), x), fused)
        else:
            y = NativeConv.apply(x, *weight, op, way == "made", fused)
        return y if bias is fused else op.add(y, bias)
    if path == "dense":
        y = DenseProduct.apply(x, *weight, op)
        return op.add(y, bias)
    pixels = op.to_rows(x)
    if way == "rows":
        rows = NativeProduct.apply(flat(pixels), *weight, fused)
        y = op.from_rows(unflat(rows, pixels))
        return y if bias is fused else op.add(y, bias)
    rows = TransformProduct.apply(flat(pixels), *weight)
    return op.add(op.from_rows(unflat(rows, pixels)), bias)


def product_backward(
    g: Tensor, x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend, needs: Needs
) -> Gradients:
    """The first derivatives of `product` in x, values and alpha, those that are needed."""
    path, way = choose_path(x, weight, op, backend)
    if isinstance(op, Conv2d) and way in ("strips", "made", "kept"):
        return native_conv_product_backward(g, x, weight, op, way != "strips", needs)
    if path == "dense":
        return dense_backward(g, x, weight, op, needs)
    pixels = op.to_rows(x)
    rows = flat(op.to_rows(g, strided=False)), flat(pixels)
    if way == "rows":
        by_x, by_values, by_alpha, _ = native_backward(*rows, weight, (*needs, False))
    else:
        by_x, by_values, by_alpha = transform_backward(*rows, weight, needs)
    return None if by_x is None else op.spread(unflat(by_x, pixels), x), by_values, by_alpha
