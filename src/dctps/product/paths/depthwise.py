"""The path `depthwise`: channels-last depthwise convolutions by native code (`csrc/depthwise/`).

W is but a filter for each channel, and is kept for the backward pass. Backward reads x and g once for both
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dctps.kernels import conv_weight, depthwise_backward, depthwise_forward
from dctps.product.geometry import ConvGeometry, Geometry, Triple
from dctps.product.path import Call
from dctps.product.paths.made import MadePath, held_weight_filters
from dctps.product.precision import to_float32
from dctps.product.weight import Weight


class DepthwisePath(MadePath):
    """W by native code, then a kernel for one channel in, one out."""

    name = "depthwise"
    keeps = True

    def refusal(self, call: Call) -> str:
        """float32, channels last, and one output for each channel."""
        geometry, channels = call.geometry, call.shape[1]
        single = isinstance(geometry, ConvGeometry) and geometry.groups == geometry.shape[0] == channels > 1
        if single and call.channels_last and call.dtype == torch.float32 and math.prod(call.shape) > 0:
            return super().refusal(call)
        return "the depthwise kernel takes channels-last float32 images, one output for each channel"

    def terms(self, call: Call) -> Mapping[str, float]:
        """Numbers read and written, and products with taps."""
        share, taps = 1 / call.threads, math.prod(call.offset.shape[2:])
        written = call.rows * call.shape[1] * share
        return {
            "call": 1.0,
            "move": math.prod(call.shape) * share + written,
            "product": written * taps,
            "weight": float(call.offset.out_features * taps),
            "nonzero": float(call.nnz),
        }

    def saved(self, x: Tensor, weight: Weight) -> Tensor:
        """W."""
        values, alpha, support, offset = weight
        form = offset.memo("weight", lambda: held_weight_filters(offset)) or offset.weight_filters()
        if values.dtype != torch.float32:
            values, alpha = values.float(), to_float32(alpha)
        return conv_weight(values, support, alpha, form, offset.shape, torch.channels_last)

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """Each channel's convolution with its filter."""
        assert isinstance(geometry, ConvGeometry)
        made = self.saved(x, weight) if saved is None else saved
        # Forward, torch's kernel is the faster one where taps are many or far apart.
        if max(geometry.shape[2:]) > 3 or max(geometry.stride) > 2 or max(geometry.dilation) > 1:
            return geometry.apply(x, made, bias)
        return depthwise_forward(x, made, geometry, bias)

    def _gradients(
        self, g: Tensor, x: Tensor, made: Tensor, geometry: ConvGeometry, needs: tuple[bool, bool, bool]
    ) -> Triple:
        grad_x, grad_weight = depthwise_backward(
            to_float32(g), x, made, geometry, needs_x=needs[0], needs_weight=needs[1]
        )
        return grad_x, grad_weight, geometry.sum_bias(g) if needs[2] else None


DEPTHWISE = DepthwisePath()
