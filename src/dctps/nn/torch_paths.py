"""The product and its first derivatives in torch operations: by a W made for the call, or by D's transform.

    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>,  or <g^T x, D> where g^T x was made; accumulated in float64

Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, equations 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.nn.maps import Conv2d, Linear
from dctps.nn.precision import compute_dtype, no_autocast
from dctps.nn.weight import Weight
from dctps.sparse import sddmm, spmm

Needs = tuple[bool, bool, bool]  # of x, values, alpha
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def dense_product(x: Tensor, weight: Weight, op: Linear | Conv2d) -> Tensor:
    """`op` on x with W, which is dropped after it."""
    return op.apply(x, weight.to_dense().to(x.dtype))


def dense_backward(g: Tensor, x: Tensor, weight: Weight, op: Linear | Conv2d, needs: Needs) -> Gradients:
    """The derivatives of `dense_product` in x, values and alpha, those that are needed; W is made again."""
    need_x, need_values, need_alpha = needs
    dtype = compute_dtype(x.dtype)
    with no_autocast(x):
        dense = weight.offset.to_dense(dtype=dtype, device=x.device)
        by_x, by_weight = op.backward(
            g, x, weight.combine(dense).to(x.dtype), need_x, need_values or need_alpha
        )
        if by_weight is None:
            return by_x, None, None
        return by_x, *weight_backward(by_weight, weight, need_values, need_alpha, dense)


def weight_backward(
    by_weight: Tensor, weight: Weight, need_values: bool, need_alpha: bool, dense: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """What W's gradient says of values and alpha, those that are needed; `dense` is D, where it was made."""
    values, alpha, support, offset = weight
    by_values = by_weight.reshape(-1)[support].to(values.dtype) if need_values else None
    if alpha is None or not need_alpha:
        return by_values, None
    if dense is None:
        dense = offset.to_dense(dtype=compute_dtype(values.dtype), device=values.device)
    return by_values, _inner(by_weight.to(dense.dtype), dense).to(alpha.dtype)


def transform_product(x: Tensor, weight: Weight) -> Tensor:
    """alpha * D x + S x on rows, D by its transform, S by its nonzeros."""
    values, alpha, support, offset = weight
    dtype = compute_dtype(x.dtype)
    rows = x.to(dtype)
    y = None if alpha is None else alpha.to(dtype) * offset.apply(rows)
    if y is None or values.numel():
        s = spmm(values.to(dtype), support, rows, weight.matrix_shape)
        y = s if y is None else y + s
    return y.to(x.dtype)


def transform_backward(g: Tensor, x: Tensor, weight: Weight, needs: Needs) -> Gradients:
    """The derivatives of `transform_product` in x, values and alpha, those that are needed."""
    values, alpha, support, offset = weight
    need_x, need_values, need_alpha = needs
    dtype = compute_dtype(x.dtype)
    by_x = by_values = by_alpha = None
    with no_autocast(x):
        rows, g = x.to(dtype), g.to(dtype)
        if alpha is not None and (need_x or need_alpha):
            dt_g = offset.adjoint(g)
            by_x = alpha.to(dtype) * dt_g
            if need_alpha:
                by_alpha = _inner(dt_g, rows).to(alpha.dtype)
        if need_x and (by_x is None or values.numel()):
            st_g = spmm(values.to(dtype), support, g, weight.matrix_shape, transposed=True)
            by_x = st_g if by_x is None else by_x + st_g
        if need_values:
            by_values = sddmm(g, rows, support, weight.matrix_shape).to(values.dtype)
        if by_x is not None:
            by_x = by_x.to(x.dtype)
    return by_x, by_values, by_alpha


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, summed in float64, as one element."""
    return (a * b).sum(dtype=torch.float64).reshape(1)
