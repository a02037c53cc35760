"""The path `transform`: D by its fast transform and S by its nonzeros, in torch operations, on rows.

    y        = alpha * D x + S x
    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>, accumulated in float64

Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, equations 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dctps.product.geometry import Geometry, flat
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.dense import inner
from dctps.product.precision import compute_dtype
from dctps.product.weight import Weight
from dctps.sparse import sddmm, spmm


class TransformPath(Path):
    """D is applied, never made."""

    name = "transform"

    @property
    def twin(self) -> Path:
        """Itself."""
        return self

    def refusal(self, call: Call) -> str:
        """Maps on rows only, and offsets with a fast transform."""
        if not call.geometry.is_rowwise(call.offset):
            return "only 1 x 1 convolutions without groups and padding have a transform path"
        if math.isinf(call.offset.row_cost):
            return f"offset {call.offset.name!r} has no fast transform"
        return ""

    def terms(self, call: Call) -> Mapping[str, float]:
        """D's transform of each row, each row into and out of S's layout, S's products and layout, a call."""
        rows, width = call.rows / call.threads, call.offset.out_features + call.offset.in_features
        return {
            "call": 1.0,
            "transform": rows * call.offset.row_cost,
            "move": rows * width if call.nnz else 0.0,
            "nonzero": rows * call.nnz,
            "entry": float(call.nnz),
        }

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """alpha * D x + S x."""
        values, alpha, support, offset = weight
        dtype = compute_dtype(x.dtype)
        rows = flat(geometry.to_rows(x)).to(dtype)
        y = None if alpha is None else alpha.to(dtype) * offset.apply(rows)
        if y is None or values.numel():
            s = spmm(values.to(dtype), support, rows, weight.matrix_shape)
            y = s if y is None else y + s
        return geometry.result(y.to(x.dtype), x)

    def backward(
        self,
        g: Tensor,
        x: Tensor,
        weight: Weight,
        geometry: Geometry,
        saved: Tensor | None,
        needs: Needs,
    ) -> Gradients:
        """By D's adjoint."""
        values, alpha, support, offset = weight
        need_x, need_values, need_alpha, need_bias = needs
        dtype = compute_dtype(x.dtype)
        grad_x = grad_values = grad_alpha = None
        rows = flat(geometry.to_rows(x)).to(dtype)
        grad_y = flat(geometry.to_rows(g, strided=False)).to(dtype)
        if alpha is not None and (need_x or need_alpha):
            dt_g = offset.adjoint(grad_y)
            grad_x = alpha.to(dtype) * dt_g
            if need_alpha:
                grad_alpha = inner(dt_g, rows).to(alpha.dtype)
        if need_x and (grad_x is None or values.numel()):
            st_g = spmm(values.to(dtype), support, grad_y, weight.matrix_shape, transposed=True)
            grad_x = st_g if grad_x is None else grad_x + st_g
        if need_values:
            grad_values = sddmm(grad_y, rows, support, weight.matrix_shape).to(values.dtype)
        if grad_x is not None:
            grad_x = geometry.grad_input(grad_x.to(x.dtype), x) if need_x else None
        return grad_x, grad_values, grad_alpha, geometry.sum_bias(g) if need_bias else None


TRANSFORM = TransformPath()
