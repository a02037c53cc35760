"""The path `tiles`, in Triton, on a GPU: D by two small matrix products of each row, S by gathered columns.

    y        = alpha * D x + S x + b
    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>, accumulated in float64 over rows

W is never made (`gpu/rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dctps import gpu
from dctps.gpu.products import Products
from dctps.offsets import Offset
from dctps.product.geometry import Geometry, flat
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.dense import dense_terms
from dctps.product.paths.transform import TRANSFORM
from dctps.product.weight import Weight


class TilesPath(Path):
    """D is applied, never made, by tensor cores."""

    name = "tiles"
    adds_bias = True

    @property
    def twin(self) -> Path:
        """The same in torch operations."""
        return TRANSFORM

    def refusal(self, call: Call) -> str:
        """Maps on rows, of lengths with two factors up to 128, where Triton's kernels run."""
        if not call.ordinary or not call.geometry.is_rowwise(call.offset):
            return "a transform of torch looks at the tensors, or the convolution is larger than 1 x 1"
        if call.offset.name != "zero" and call.offset.sides is None:
            return f"offset {call.offset.name!r} has no two factors up to 128 at this width"
        if not gpu.multiplies_tiles(torch.device(call.device), call.dtype):
            return (
                "tiles are for bfloat16 and float16, on a GPU of compute capability 9.0 or later with Triton"
            )
        return ""

    def wins(self, call: Call) -> bool:
        """On other devices than the CPU, for which there is native code."""
        return call.device != "cpu"

    def terms(self, call: Call) -> Mapping[str, float]:
        """As `dense`."""
        return dense_terms(call)

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """alpha * D x + S x + b."""
        values, alpha, support, offset = weight
        rows = flat(geometry.to_rows(x)).contiguous()
        products = _products(offset, x.device)
        y = gpu.rows.apply(rows, products, alpha, values, support, bias, weight.matrix_shape)
        return geometry.result(y, x)

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
        rows = flat(geometry.to_rows(x)).contiguous()
        grad_y = flat(geometry.to_rows(g, strided=False)).contiguous()
        grad_x, grad_values, grad_alpha = gpu.rows.gradients(
            grad_y,
            rows,
            _products(offset, x.device),
            alpha,
            values,
            support,
            needs[:3],
            weight.matrix_shape,
        )
        if grad_x is not None:
            grad_x = geometry.grad_input(grad_x, x)
        return grad_x, grad_values, grad_alpha, geometry.sum_bias(g) if needs[3] else None


def _products(offset: Offset, device: torch.device) -> Products | None:
    """D's tables, made once for a device; None under `zero`."""
    if offset.sides is None:
        return None
    return offset.memo(("products", device), lambda: offset.products(device))


TILES = TilesPath()
