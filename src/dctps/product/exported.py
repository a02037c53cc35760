"""The layers' products in plain tensor operations, for `torch.export` and what builds on it.

An exported program runs without this library, for any batch size, and holds D as the steps that make it.
Linear layers and 1 x 1 convolutions apply their transform, whatever the batch; S gathers inputs and adds them
to outputs. Larger kernels make W from the tables of their shape for the call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.product.geometry import ConvGeometry, Geometry
from dctps.product.precision import compute_dtype
from dctps.product.weight import Weight
from dctps.transforms.tables import is_tracing


def exported_product(x: Tensor, weight: Weight, op: Geometry) -> Tensor:
    """`product`, differentiable by torch's own rules."""
    alpha, offset = weight.alpha, weight.offset
    dtype = compute_dtype(x.dtype)
    if not op.is_rowwise(offset):
        dense = offset.to_dense(dtype=dtype, device=x.device)
        # All arguments are given: a strict export cannot guard the defaults of a method of `op`.
        return op.apply(x, weight.combine(dense).to(x.dtype), None)
    pixels = op.to_rows(_visited(x, op), strided=False)
    rows = pixels.reshape(-1, offset.in_features).to(dtype)
    y = _sparse_product(rows, weight)
    if alpha is not None:
        y = alpha.to(dtype) * offset.apply(rows) + y
    y = y.to(x.dtype).reshape(*pixels.shape[:-1], offset.out_features)
    # Older ONNX exporters know no axis -1.
    return y.permute(0, 3, 1, 2) if isinstance(op, ConvGeometry) else y


def _visited(x: Tensor, op: Geometry) -> Tensor:
    """The rows and columns of pixels that the kernel visits. A slice would restrict their number."""
    if isinstance(op, ConvGeometry):
        for axis, by in zip((2, 3), op.stride, strict=True):
            if by > 1:
                x = x.index_select(axis, torch.arange(0, x.shape[axis], by, device=x.device))
    return x


def _sparse_product(rows: Tensor, weight: Weight) -> Tensor:
    """S x on rows: each value's input, times the value, is added to its output."""
    m, n = weight.matrix_shape
    # 0 by an operation on x: a program of constants would have no input, and the older ONNX exporter takes a
    # tensor made of a shape alone for a constant.
    zeros = (rows[:, :1] * 0).expand(-1, m)
    if not weight.values.numel():
        return zeros
    inputs, outputs = weight.support % n, weight.support // n
    terms = rows.T.index_select(0, inputs) * weight.values.to(rows.dtype)[:, None]
    if is_tracing():  # the ONNX exporter behind it cannot add twice to one output by index_add
        _check_opset()
        return zeros.T.scatter_add(0, outputs[:, None].expand_as(terms), terms).T
    return rows.new_zeros(m, rows.shape[0]).index_add(0, outputs, terms).T


def _check_opset() -> None:
    """Refuse ONNX before opset 16, whose scatter keeps one of several terms of an output, without a word."""
    if torch.onnx.is_in_onnx_export():
        opset = torch.onnx.utils.GLOBALS.export_onnx_opset_version  # type: ignore[attr-defined]
        if opset < 16:
            raise ValueError(
                f"opset_version={opset} cannot add several terms to one output: export with opset_version=16 "
                f"or later, or with dynamo=True"
            )
