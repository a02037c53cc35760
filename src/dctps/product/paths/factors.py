"""The path `factors`: W from short vectors that layers of a shape share (`offsets/factors.py`), for GPUs.

    W        = alpha * Re(left * right) * signs + S
    d values = (dW) at the support
    d alpha  = <dW, D>, accumulated in float64

On a GPU an operation costs its launch, so W is made in a handful of them, in float32, and rounded once. Where
Triton is installed its kernels (`gpu/`) make W in two launches, and its gradients in two.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dctps import gpu
from dctps.gpu import Entries
from dctps.product.geometry import Geometry, layout_of
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.dense import DENSE, dense_terms, inner
from dctps.product.precision import compute_dtype
from dctps.product.weight import Weight

Made = Tensor | Entries | None  # D, or what a kernel makes it from


class FactorsPath(Path):
    """W is made for the call, once in forward and again in backward, in x's memory layout."""

    name = "factors"

    @property
    def twin(self) -> Path:
        """W by operations that can be differentiated."""
        return DENSE

    def refusal(self, call: Call) -> str:
        """Ordinary tensors, under an offset with factors."""
        if call.ordinary and call.offset.has_factors:
            return ""
        return f"offset {call.offset.name!r} has no factors, or a transform of torch looks at the tensors"

    def wins(self, call: Call) -> bool:
        """On other devices than the CPU, for which there is native code."""
        return call.device != "cpu"

    def terms(self, call: Call) -> Mapping[str, float]:
        """As `dense`."""
        return dense_terms(call)

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """The product with W, which is dropped after it."""
        return geometry.apply(x, make_weight(weight, make_offset(weight, x), x))

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
        d = make_offset(weight, x)
        # Only the gradient of x reads W's values, so a tensor of its shape will do for the others.
        made = make_weight(weight, d, x) if need_x else _unread(weight, x)
        needed = need_x, need_values or need_alpha, False
        grad_x, grad_weight, _ = geometry.backward(g, x, made, needed)
        grad_values = grad_alpha = None
        if grad_weight is not None:
            grad_values, grad_alpha = weight_gradients(grad_weight, weight, d, need_values, need_alpha)
        return grad_x, grad_values, grad_alpha, geometry.sum_bias(g) if need_bias else None


def make_offset(weight: Weight, x: Tensor) -> Made:
    """D, of the weight's shape and in the dtype that W is made in; None where there is no D."""
    offset = weight.offset
    if gpu.is_usable(x):
        return _entries(weight, x)
    if weight.alpha is None:
        return None
    left, right, left_index, right_index, signs, sign_index, channels_last = offset.factors(
        dtype=compute_dtype(x.dtype), device=x.device
    )
    if left_index is not None:
        left = left.index_select(0, left_index)
    if right_index is not None:
        right = right.index_select(0, right_index)
    product = left * right
    rows = (product.real if product.is_complex() else product).flatten(1)[:, : offset.in_features]
    if sign_index is not None and signs is not None:
        rows = rows * signs.index_select(0, sign_index)
    elif signs is not None:
        rows = (rows.reshape(len(signs), -1, rows.shape[1]) * signs[:, None]).flatten(0, 1)
    if not channels_last or len(offset.shape) == 2:
        return rows.view(offset.shape)
    m, channels, kh, kw = offset.shape
    return rows.view(m, kh, kw, channels).permute(0, 3, 1, 2)


def make_weight(weight: Weight, d: Made, x: Tensor) -> Tensor:
    """alpha * D + S in x's dtype and layout."""
    values, alpha, support, offset = weight
    layout = layout_of(x) if x.dim() == 4 else torch.contiguous_format
    if isinstance(d, Entries):
        return gpu.make_weight(d, alpha, values, support, dtype=x.dtype, layout=layout)
    if alpha is None or d is None:
        made = torch.empty(
            offset.shape, dtype=compute_dtype(x.dtype), device=x.device, memory_format=layout
        ).zero_()
    else:
        made = d * alpha.to(d.dtype)
    # Of any layout `put_` takes torch's flat positions, which a support is.
    made.put_(support, values.to(made.dtype), accumulate=True)
    return made.to(x.dtype, memory_format=layout)


def _unread(weight: Weight, x: Tensor) -> Tensor:
    """A tensor of W's shape, dtype and layout."""
    layout = layout_of(x) if x.dim() == 4 else torch.contiguous_format
    return torch.empty(weight.offset.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def weight_gradients(
    grad_weight: Tensor, weight: Weight, d: Made, need_values: bool, need_alpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of values and alpha from W's, where needed."""
    values, alpha, support, _ = weight
    if isinstance(d, Entries):
        given = alpha if need_alpha else None
        return gpu.weight_gradients(grad_weight, d, values, support, given, need_values=need_values)
    grad_values = grad_alpha = None
    if need_values:
        grad_values = grad_weight.take(support).to(values.dtype)
    if need_alpha and alpha is not None and d is not None:
        grad_alpha = inner(grad_weight, d).to(alpha.dtype)
    return grad_values, grad_alpha


def _entries(weight: Weight, x: Tensor) -> Entries:
    """What kernels make D from; without D the shape alone."""
    offset = weight.offset
    if weight.alpha is None:
        return Entries(offset.shape)

    def made() -> Entries:
        factors = offset.factors(dtype=torch.float32, device=x.device)
        left, right = factors.left.squeeze(2), factors.right.squeeze(1)
        if left.is_complex():
            left, right = torch.view_as_real(left), torch.view_as_real(right)
        return Entries(offset.shape, left, right, *factors[2:])

    return offset.memo(("entries", x.device), made)


FACTORS = FactorsPath()
