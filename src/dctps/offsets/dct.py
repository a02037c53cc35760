"""The paper's offset: a block of the orthonormal DCT-II matrix."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.gpu.products import Products
from dctps.kernels import Filters, depthwise_filters, has_plan
from dctps.offsets.base import Offset
from dctps.offsets.channel_factors import (
    channel_basis,
    channel_coordinates,
    channel_factors,
    spatial_filters,
)
from dctps.offsets.factors import Factors, dct_factors
from dctps.offsets.products import dct_products, sides
from dctps.offsets.registry import register_offset
from dctps.transforms import dct, dct_rows, idct
from dctps.transforms.tables import shape_table

_CPU = torch.device("cpu")


@register_offset("dct")
class DCTOffset(Offset):
    """The top-left m x n block of the orthonormal DCT-II matrix of size q = max(m, n).

    A patch is read with the channel fastest, `weight[o, c, i, j] = D[o, (i * kw + j) * C + c]`, and the
    outputs of all groups run through the rows together.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, section 3.
    """

    @property
    def size(self) -> int:
        """q: the transform's length."""
        return max(self.out_features, self.in_features)

    @property
    def row_cost(self) -> float:
        """A real FFT with reordering before and after."""
        return 6.0 * self.groups * self.size

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """D as a tensor of the weight's shape."""
        m, n = self.out_features, self.in_features
        rows = torch.arange(m, dtype=torch.int64, device=device)
        if len(self.shape) == 2:
            fine = math.isqrt(n - 1) + 1
            blocks = dct_rows(rows, self.size, -(-n // fine), fine, dtype=dtype)
            return blocks.flatten(1)[:, :n].contiguous()
        channels = self.shape[1]
        return (
            dct_rows(rows, self.size, n // channels, channels, dtype=dtype)
            .transpose(-1, -2)
            .reshape(self.shape)
        )

    def apply(self, x: Tensor) -> Tensor:
        """D x by one transform of length q for each group."""
        n, per_group = self.in_features, self.out_features // self.groups
        patches = self._channel_last(x.unflatten(-1, (self.groups, n)))
        spectrum = dct(F.pad(patches, (0, self.size - n)))
        kept = [spectrum[..., g, g * per_group : (g + 1) * per_group] for g in range(self.groups)]
        return kept[0] if self.groups == 1 else torch.cat(kept, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        """D^T y by one transposed transform of length q for each group."""
        per_group = self.out_features // self.groups
        spectrum = torch.stack(
            [
                F.pad(y[..., g * per_group : (g + 1) * per_group], (g * per_group, self._above(g)))
                for g in range(self.groups)
            ],
            -2,
        )
        return self._channel_first(idct(spectrum)[..., : self.in_features]).flatten(-2)

    def norm(self) -> float:
        """sqrt(min(m, n)): D's rows are orthonormal, or its columns where there are fewer of those."""
        return math.sqrt(min(self.out_features, self.in_features))

    @property
    def has_filters(self) -> bool:
        """Convolutions of one group, the 1 x 1 where there is a native transform of their length."""
        if self.groups > 1 or len(self.shape) == 2:
            return super().has_filters
        return math.prod(self.shape[2:]) > 1 or has_plan(self.size)

    @property
    def filter_cost(self) -> float:
        """Two filters for each output, and the channels' factors, of which about m / taps + 15 matter."""
        m, channels, taps = self.out_features, self.shape[1], math.prod(self.shape[2:])
        if taps == 1:
            return 4.0 * self.size * self.size.bit_length()
        rank = min(channels, m // taps + 15)
        return 2 * super().filter_cost + min(2.0 * m * channels, rank * (2.0 * m + channels))

    def filters(self) -> Filters:
        """A pair of filters for each output, by the angle-addition rule (`channel_factors.py`)."""
        m, channels, kh, kw = self.shape
        outputs = torch.arange(m, dtype=torch.int32, device=_CPU)
        if channels == 1:
            return depthwise_filters(
                _depthwise_filters((m, kh * kw), torch.float32, _CPU), self.groups, outputs
            )
        if kh * kw == 1:
            one = torch.ones(1, 1, dtype=torch.float32, device=_CPU)
            return Filters(1, one, self.size, outputs, cosine=self.size)
        size = (m, channels, kh * kw)
        basis = channel_basis(size, torch.float32, _CPU)
        if basis.shape[0] * (2 * m + channels) < 2 * m * channels:
            mix: tuple[Tensor, ...] = (basis, channel_coordinates(size, torch.float32, _CPU))
        else:
            mix = (channel_factors(size, torch.float32, _CPU),)
        return Filters(2, spatial_filters(size, torch.float32, _CPU), 2 * m, mix=mix)

    def weight_filters(self) -> Filters:
        """W's rows are D's, read with the channel fastest."""
        return self.memo("weight_filters", lambda: Filters(1, rows=self.size))

    @property
    def has_factors(self) -> bool:
        """Any layer."""
        return True

    def factors(self, *, dtype: torch.dtype, device: torch.device) -> Factors:
        """The matrix's rows in order."""
        return Factors(*dct_factors(self.out_features, self.size, self.in_features, dtype, device))

    @property
    def sides(self) -> tuple[int, int] | None:
        """Of q, on rows."""
        return sides(self.size) if self.groups == math.prod(self.shape[2:]) == 1 else None

    def products(self, device: torch.device) -> Products:
        """One transform, its first m entries."""
        first, between, last = dct_products(self.size, device)
        return Products(between.shape[1:], first, between, last)  # type: ignore[arg-type]

    def _above(self, group: int) -> int:
        """Transform rows above those of `group`."""
        return self.size - (group + 1) * (self.out_features // self.groups)

    def _channel_last(self, patches: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return patches
        cubes: Tensor = patches.unflatten(-1, (self.shape[1], -1))
        return cubes.transpose(-1, -2).flatten(-2)

    def _channel_first(self, patches: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return patches
        cubes: Tensor = patches.unflatten(-1, (-1, self.shape[1]))
        return cubes.transpose(-1, -2).flatten(-2)


@shape_table
def _depthwise_filters(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """D where a group has one channel, (m, taps)."""
    m, taps = size
    return (
        dct_rows(torch.arange(m, dtype=torch.int64, device=_CPU), max(size), taps, 1, dtype=dtype)
        .flatten(1)
        .to(device)
    )
