"""y = alpha * D x + S x + b, as functions of tensors and an offset."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.nn.dispatch import Backend
from dctps.nn.exported import exported_product
from dctps.nn.maps import Conv2d, Linear, flat, unflat
from dctps.nn.operators import compiled_product
from dctps.nn.precision import autocast, no_autocast
from dctps.nn.products import product
from dctps.nn.weight import Weight
from dctps.offsets import Offset
from dctps.transforms.tables import is_exporting


def dps_linear(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Y = x (alpha * D + S)^T + b.

    Args:
        x: (*, n), float32, float64, bfloat16 or float16; cast as for `F.linear` under autocast.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in the m x n weight.
        offset: D, of shape (m, n).
        alpha: (1,), or None where there is no D.
        bias: (m,) or None.
        backend: which path; `"auto"` follows the rule of `dispatch.py`.

    Returns:
        (*, m), of x's dtype.
    """
    return unflat(_product(flat(x), Weight(values, alpha, support, offset), Linear(), backend, bias), x)


def dps_conv2d(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    backend: Backend = "auto",
) -> Tensor:
    """The 2-D convolution of x with W = alpha * D + S, plus bias.

    A 1 x 1 kernel is a linear map along the channels and may take its transform; larger kernels make W
    for the call.

    Args:
        x: (batch, channels, height, width), dtypes as `dps_linear`.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in W.
        offset: D, of shape (out, channels / groups, kh, kw), in `offset.groups` groups.
        alpha: (1,), or None where there is no D.
        bias: (out,) or None.
        stride: of the kernel, rows and columns; `padding` (zeros) and `dilation` likewise.
        padding: see `stride`.
        dilation: see `stride`.
        backend: which path; `"auto"` follows the rule of `dispatch.py`.

    Returns:
        (batch, out, height', width'), of x's dtype.

    Raises:
        ValueError: `backend="transform"` for a kernel that has none.
    """
    op = Conv2d(stride, padding, dilation, offset.groups)
    return _product(x, Weight(values, alpha, support, offset), op, backend, bias)


def _product(x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend, bias: Tensor | None) -> Tensor:
    """The product by autograd functions; by operators under a compiler, and by plain ones in an export."""
    x = autocast(x)
    with no_autocast(x):
        if is_exporting():
            return op.add(exported_product(x, weight, op), bias)
        if torch.compiler.is_compiling():
            return op.add(compiled_product(x, weight, op, backend), bias)
        return product(x, weight, op, backend, bias)
