"""The path `taps`: W by native code, then one matrix product for each tap, on the pixels that the tap meets.

    y[p] = sum_t  W_t x[p * stride + t * dilation - padding]

On images of a few pixels most taps fall into the padding, which torch's convolution multiplies all the same:
for 3 x 3 on 2 x 2 pixels five of nine do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dctps.product.geometry import ConvGeometry, Triple
from dctps.product.path import Call
from dctps.product.paths.dense import dense_terms
from dctps.product.paths.made import MadePath

_LEAST_PADDING = 0.5  # use this path where so much of all products of a tap and a pixel is padding,
_LEAST_CHANNELS = 64  # and where the products are large enough to be worth their calls


class TapsPath(MadePath):
    """Matrix products of torch's, as many as there are taps that meet pixels."""

    name = "taps"

    def refusal(self, call: Call) -> str:
        """Channels-last images, whose pixels are rows, and kernels of one group."""
        if isinstance(call.geometry, ConvGeometry) and call.geometry.groups == 1 and call.channels_last:
            return super().refusal(call)
        return "products by taps take channels-last images and kernels of one group"

    def wins(self, call: Call) -> bool:
        """Where most of a convolution's products were with padding."""
        assert isinstance(call.geometry, ConvGeometry)
        padded = call.geometry.share_met(call.shape[2:]) <= 1 - _LEAST_PADDING
        return padded and min(call.offset.shape[:2]) >= _LEAST_CHANNELS

    def terms(self, call: Call) -> Mapping[str, float]:
        """As `made`, with the share of its products that meet pixels, and a call of torch's for each tap."""
        terms = dense_terms(call)
        assert isinstance(call.geometry, ConvGeometry)
        taps = [len(axis) for axis in call.geometry.meetings(call.shape[2:])]
        product = "window" if "window" in terms else "pixel"
        share = call.geometry.share_met(call.shape[2:])
        return {**terms, product: terms[product] * share, "padding": 0.0, "tap": float(taps[0] * taps[1])}

    def _convolve(self, x: Tensor, made: Tensor, geometry: ConvGeometry, bias: Tensor | None) -> Tensor:
        batch, m, rows, columns = geometry.outputs(x)
        pixels, y = x.permute(0, 2, 3, 1), x.new_zeros(batch, rows, columns, m)
        for (i, j), to, read in _taps(geometry, x):
            written = y[to]
            written += (pixels[read].reshape(-1, x.shape[1]) @ made[:, :, i, j].T).view(written.shape)
        return geometry.add(y.permute(0, 3, 1, 2), bias)

    def _gradients(
        self, g: Tensor, x: Tensor, made: Tensor, geometry: ConvGeometry, needs: tuple[bool, bool, bool]
    ) -> Triple:
        m, channels = made.shape[:2]
        pixels, grad_y = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1)
        grad_x = torch.zeros_like(pixels) if needs[0] else None
        grad_weight = torch.zeros_like(made) if needs[1] else None
        for (i, j), to, read in _taps(geometry, x):
            above = grad_y[to].reshape(-1, m)
            if grad_x is not None:
                grad_x[read] += (above @ made[:, :, i, j]).view(grad_x[read].shape)
            if grad_weight is not None:
                torch.mm(above.T, pixels[read].reshape(-1, channels), out=grad_weight[:, :, i, j])
        grad_bias = geometry.sum_bias(g) if needs[2] else None
        return None if grad_x is None else grad_x.permute(0, 3, 1, 2), grad_weight, grad_bias


Region = tuple[slice, slice, slice]


def _taps(geometry: ConvGeometry, x: Tensor) -> Iterator[tuple[tuple[int, int], Region, Region]]:
    """Each tap that meets pixels, with the outputs that it adds to and the pixels that these read."""
    down, across = geometry.meetings(x.shape[2:])
    for i, to_row, from_row in down:
        for j, to_column, from_column in across:
            yield (i, j), (slice(None), to_row, to_column), (slice(None), from_row, from_column)


TAPS = TapsPath()
