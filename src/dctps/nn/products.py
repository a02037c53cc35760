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
from dctps.nn.depthwise import is_by_channels
from dctps.nn.dispatch import Backend
from dctps.nn.kept_weight import keeps_weight, made_weight
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
    path, native_conv = choose_path(x, weight, op, backend)
    # In half precision the sum is rounded before b is added, as compiled layers do.
    fused = bias if bias is None or x.dtype == bias.dtype == torch.float32 else None
    y: Tensor
    if native_conv and isinstance(op, Conv2d):
        kept = not is_by_channels(x, op, weight.offset.shape[0]) and keeps_weight(
            x, len(weight.values), weight.offset
        )
        if path == "dense" and kept:
            y = op.apply(x, rounded(made_weight(weight, layout_of(x)), x), fused)
        else:
            y = NativeConv.apply(x, *weight, op, path == "dense", fused)
        return y if bias is fused else op.add(y, bias)
    if path == "dense":
        y = DenseProduct.apply(x, *weight, op)
        return op.add(y, bias)
    pixels = op.to_rows(x)
    if path == "native":
        rows = NativeProduct.apply(flat(pixels), *weight, fused)
        y = op.from_rows(unflat(rows, pixels))
        return y if bias is fused else op.add(y, bias)
    rows = TransformProduct.apply(flat(pixels), *weight)
    return op.add(op.from_rows(unflat(rows, pixels)), bias)


def product_backward(
    g: Tensor, x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend, needs: Needs
) -> Gradients:
    """The first derivatives of `product` in x, values and alpha, those that are needed."""
    path, native_conv = choose_path(x, weight, op, backend)
    if native_conv and isinstance(op, Conv2d):
        return native_conv_product_backward(g, x, weight, op, path == "dense", needs)
    if path == "dense":
        return dense_backward(g, x, weight, op, needs)
    pixels = op.to_rows(x)
    rows = flat(op.to_rows(g, strided=False)), flat(pixels)
    if path == "native":
        by_x, by_values, by_alpha, _ = native_backward(*rows, weight, (*needs, False))
    else:
        by_x, by_values, by_alpha = transform_backward(*rows, weight, needs)
    return None if by_x is None else op.spread(unflat(by_x, pixels), x), by_values, by_alpha
