"""The paths `made` and `kept`: W = alpha * D + S by native code (`csrc/weight/`), then torch's convolution.

`made` makes W in the forward pass and again in the backward pass. `kept` makes it once and keeps it: only
where W is small compared with x or with S, which are kept anyway, so that the memory does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dctps.kernels import Filters, conv_weight, conv_weight_backward
from dctps.offsets import Offset
from dctps.product.geometry import ConvGeometry, Geometry, Triple, layout_of
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.dense import DENSE, dense_terms
from dctps.product.precision import cast_like, to_float32
from dctps.product.weight import Weight

_OF_INPUT = 32  # `kept`: W has at most 1/32 of x's numbers,
_OF_SUPPORT = 3  # or at most three weights a nonzero, whose value and position take the memory of three


class MadePath(Path):
    """W is made for the call; subclasses multiply with it in another way, or keep it."""

    name = "made"
    adds_bias = True

    @property
    def twin(self) -> Path:
        """W by torch operations."""
        return DENSE

    def refusal(self, call: Call) -> str:
        """Convolutions of one group or depthwise ones, under an offset with filters."""
        offset = call.offset
        known = call.native and isinstance(call.geometry, ConvGeometry) and offset.has_filters
        if known and (offset.groups == 1 or offset.shape[1] == 1):
            return ""
        return f"no native code makes the weight of {offset!r} here: it takes what `strips` takes, ungrouped"

    def terms(self, call: Call) -> Mapping[str, float]:
        """As `dense`, with constants of its own."""
        return dense_terms(call)

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """The convolution with W, made now unless it is saved."""
        assert isinstance(geometry, ConvGeometry)
        return self._convolve(x, native_weight(x, weight) if saved is None else saved, geometry, bias)

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
        assert isinstance(geometry, ConvGeometry)
        need_x, need_values, need_alpha, need_bias = needs
        if saved is not None:
            made = saved
        elif need_x:
            made = native_weight(x, weight)
        else:  # a first layer: only the gradient of x reads W's values, so a tensor of its shape will do
            made = torch.empty(geometry.shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
        needed = need_x, need_values or need_alpha, need_bias
        grad_x, grad_weight, grad_bias = self._gradients(g, x, made, geometry, needed)
        grad_values = grad_alpha = None
        if grad_weight is not None:
            grad_values, grad_alpha = native_gradients(grad_weight, weight, need_values, need_alpha)
        return grad_x, grad_values, grad_alpha, grad_bias

    def _convolve(self, x: Tensor, made: Tensor, geometry: ConvGeometry, bias: Tensor | None) -> Tensor:
        return geometry.apply(x, made, bias)

    def _gradients(
        self, g: Tensor, x: Tensor, made: Tensor, geometry: ConvGeometry, needs: tuple[bool, bool, bool]
    ) -> Triple:
        """The gradients of x, W and b, where needed."""
        grad_x, grad_weight, _ = geometry.backward(g, x, made, (*needs[:2], False))
        return grad_x, grad_weight, geometry.sum_bias(g) if needs[2] else None


class KeptPath(MadePath):
    """W is saved for the backward pass, at float32 or x's dtype."""

    name = "kept"
    keeps = True

    def wins(self, call: Call) -> bool:
        """Where W takes no memory that counts."""
        size = math.prod(call.offset.shape)
        return _OF_INPUT * size <= math.prod(call.shape) or size <= _OF_SUPPORT * call.nnz

    def saved(self, x: Tensor, weight: Weight) -> Tensor | None:
        """W."""
        return native_weight(x, weight)

    def _gradients(
        self, g: Tensor, x: Tensor, made: Tensor, geometry: ConvGeometry, needs: tuple[bool, bool, bool]
    ) -> Triple:
        return geometry.backward(g, x, made, needs)


def native_weight(x: Tensor, weight: Weight) -> Tensor:
    """alpha * D + S in x's dtype and layout, made in float32."""
    values, alpha, support, offset = weight
    form, layout = offset.weight_filters(), layout_of(x)
    return cast_like(
        conv_weight(to_float32(values), support, to_float32(alpha), form, offset.shape, layout), x
    )


def held_weight_filters(offset: Offset) -> Filters | None:
    """What W is made from, where it is small; None where it may hold all of D."""
    filters = offset.weight_filters()
    held = filters.bank is None or len(filters.bank) < offset.out_features
    return filters if held else None


def native_gradients(
    grad_weight: Tensor, weight: Weight, need_values: bool, need_alpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of values and alpha from W's, where needed."""
    values, alpha, support, offset = weight
    grad_values, grad_alpha = conv_weight_backward(
        to_float32(grad_weight),
        to_float32(values),
        support,
        to_float32(alpha),
        offset.weight_filters(),
        needs_values=need_values,
        needs_alpha=need_alpha,
    )
    return cast_like(grad_values, values), cast_like(grad_alpha, values)


MADE, KEPT = MadePath(), KeptPath()
