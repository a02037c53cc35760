"""The path `strips`: a convolution by D's filters and S's nonzeros, without W (`csrc/conv/`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dctps.kernels import Filters, conv_backward, conv_forward
from dctps.offsets import DCTOffset, Offset, SDCTOffset, ZeroOffset
from dctps.product.geometry import ConvGeometry, Geometry
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.dense import DENSE
from dctps.product.precision import cast_like, to_float32, to_readable
from dctps.product.weight import Weight


class StripsPath(Path):
    """Each channel is a strip of pixels, on which a nonzero of S is one shifted multiply-add."""

    name = "strips"
    adds_bias = True

    @property
    def twin(self) -> Path:
        """W by torch operations."""
        return DENSE

    def refusal(self, call: Call) -> str:
        """Convolutions under an offset with filters."""
        if call.native and isinstance(call.geometry, ConvGeometry) and call.offset.has_filters:
            return ""
        return (
            f"no native kernel for {call.offset!r} here: it takes dct and sdct offsets of one group, zero "
            "offsets and depthwise convolutions, on CPU tensors below float64; is it compiled "
            "(`python -m dctps.kernels`)?"
        )

    def terms(self, call: Call) -> Mapping[str, float]:
        """Channels into and out of strips, D's mixing and filters, S's products, S's lists, and a call."""
        geometry, offset, share = call.geometry, call.offset, 1 / call.threads
        assert isinstance(geometry, ConvGeometry)
        m, channels, *kernel = offset.shape
        positions, phases = geometry.count_positions(call.shape)
        # A pair of filters for each output under `dct`, else one; depthwise channels are not mixed.
        pairs = type(offset) is DCTOffset and channels > 1 and math.prod(kernel) > 1
        filters = min(offset.filter_cost, (8.0 if pairs else 4.0) * m * math.prod(kernel))
        mixing = offset.filter_cost - filters if channels > 1 else 0.0
        return {
            "call": 1.0,
            "move": (math.prod(call.shape) + call.rows * m) * share,
            # The channels of every phase of the stride are mixed, the filters run at the results alone.
            "mix": mixing * positions * phases * share,
            "filter": filters * positions * share,
            "nonzero": call.nnz * positions * share,
            "entry": float(call.nnz),
        }

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """In float32; half precision is rounded once."""
        assert isinstance(geometry, ConvGeometry)
        values, alpha, support, offset = weight
        filters = offset.memo("filters", lambda: held_filters(offset)) or offset.filters()
        if x.dtype != values.dtype or x.dtype.itemsize < 4:
            arguments = to_float32(values), support, to_float32(alpha), filters, geometry, bias
            return cast_like(conv_forward(to_readable(x), *arguments), x)
        return conv_forward(x, values, support, alpha, filters, geometry, bias)

    def backward(
        self,
        g: Tensor,
        x: Tensor,
        weight: Weight,
        geometry: Geometry,
        saved: Tensor | None,
        needs: Needs,
    ) -> Gradients:
        """One native call for all gradients except the bias's."""
        assert isinstance(geometry, ConvGeometry)
        values, alpha, support, offset = weight
        filters = offset.memo("filters", lambda: held_filters(offset)) or offset.filters()
        arguments = to_float32(values), support, to_float32(alpha), filters, geometry, needs[:3]
        found = conv_backward(to_readable(g), to_readable(x), *arguments)
        grad_x, grad_values, grad_alpha = found
        grad_bias = geometry.sum_bias(g) if needs[3] else None
        return cast_like(grad_x, x), cast_like(grad_values, values), cast_like(grad_alpha, values), grad_bias


def held_filters(offset: Offset) -> Filters | None:
    """The filters, where they are tables that layers of a shape share; None where they may hold all of D."""
    shared = type(offset) in (DCTOffset, SDCTOffset, ZeroOffset) and offset.shape[1] > 1
    return offset.filters() if shared else None


STRIPS = StripsPath()
