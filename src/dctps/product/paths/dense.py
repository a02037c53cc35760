"""The path `dense`: W = alpha * D + S by torch operations, then torch's kernel; it takes every call.

d x      = g W
d values = (g^T x) at the support
d alpha  = <g^T x, D>, accumulated in float64
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dctps.product.geometry import ConvGeometry, Geometry
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.precision import compute_dtype
from dctps.product.weight import Weight

_PADDED, _FEW = 16, 4  # channels


class DensePath(Path):
    """W is made for the call and dropped after it, once in forward and again in backward."""

    name = "dense"

    @property
    def twin(self) -> Path:
        """Itself."""
        return self

    def refusal(self, call: Call) -> str:
        """It takes every call."""
        return ""

    def terms(self, call: Call) -> Mapping[str, float]:
        """The dense product, W's entries, S's places in W, and a call."""
        return dense_terms(call)

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """The product with W, which is dropped after it."""
        return geometry.apply(x, weight.to_dense().to(x.dtype))

    def backward(
        self,
        g: Tensor,
        x: Tensor,
        weight: Weight,
        geometry: Geometry,
        saved: Tensor | None,
        needs: Needs,
    ) -> Gradients:
        """By W's gradient."""
        need_x, need_values, need_alpha, need_bias = needs
        dense = weight.offset.to_dense(dtype=compute_dtype(x.dtype), device=x.device)
        needed = need_x, need_values or need_alpha, False
        grad_x, grad_weight, _ = geometry.backward(g, x, weight.combine(dense).to(x.dtype), needed)
        grad_values = grad_alpha = None
        if grad_weight is not None:
            grad_values, grad_alpha = weight_gradients(grad_weight, weight, need_values, need_alpha, dense)
        return grad_x, grad_values, grad_alpha, geometry.sum_bias(g) if need_bias else None


def weight_gradients(
    grad_weight: Tensor, weight: Weight, need_values: bool, need_alpha: bool, dense: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of values and alpha from W's, where needed; `dense` is D."""
    values, alpha, support, _ = weight
    grad_values = grad_weight.reshape(-1)[support].to(values.dtype) if need_values else None
    if alpha is None or not need_alpha:
        return grad_values, None
    return grad_values, inner(grad_weight.to(dense.dtype), dense).to(alpha.dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, summed in float64, as one element."""
    return (a * b).sum(dtype=torch.float64).reshape(1)


def dense_terms(call: Call) -> dict[str, float]:
    """What a path takes that makes W and multiplies with it by torch's kernels."""
    offset, geometry = call.offset, call.geometry
    m, n, rows = offset.out_features, offset.in_features, call.rows / call.threads
    terms = {"call": 1.0, "weight": float(m * n), "nonzero": float(call.nnz)}
    if not isinstance(geometry, ConvGeometry):
        return {**terms, "product": rows * m * n}
    # oneDNN pads channels to 16, except inputs of at most 4 channels, which it handles directly.
    channels = offset.shape[1]
    width = max(m, _PADDED) * (channels if channels <= _FEW else max(channels, _PADDED)) * (n / channels)
    product, move = "window" if n > channels else "pixel", "move" if call.channels_last else "reorder"
    if geometry.groups > 1:
        product = "grouped" if call.channels_last else "scattered"
        terms["group"] = float(geometry.groups)
    terms["padding"] = rows * width * (1 - geometry.share_met(call.shape[2:]))
    return {**terms, product: rows * width, move: math.prod(call.shape) / call.threads + rows * m}


DENSE = DensePath()
