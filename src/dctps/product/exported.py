"""The layers' products in plain tensor operations, for `torch.export` and what builds on it.

An exported program runs without this library, for any batch size, and holds D as the steps that make it.
Linear layers and 1 x 1 convolutions apply their transform, whatever the batch; S gathers inputs and adds them
to outputs. Larger kernels make W from the tables of their shape for the call.
"""

from __future__ import annotations

from torch import Tensor

from dctps.product.geometry import Geometry
from dctps.product.precision import compute_dtype
from dctps.product.weight import Weight


def exported_product(x: Tensor, weight: Weight, op: Geometry) -> Tensor:
    """`product`, differentiable by torch's own rules."""
    values, alpha, support, offset = weight
    dtype = compute_dtype(x.dtype)
    if not op.is_rowwise(offset):
        dense = offset.to_dense(dtype=dtype, device=x.device)
        return op.apply(x, weight.combine(dense).to(x.dtype))
    pixels = op.to_rows(x)
    rows = pixels.reshape(-1, offset.in_features).to(dtype)
    taken = rows.T.index_select(0, support % offset.in_features) * values.to(dtype)[:, None]
    y = rows.new_zeros(offset.out_features, rows.shape[0])
    y = y.index_add(0, support // offset.in_features, taken).T
    if alpha is not None:
        y = alpha.to(dtype) * offset.apply(rows) + y
    return op.from_rows(y.to(x.dtype).reshape(*pixels.shape[:-1], offset.out_features))
