"""The separable randomised DCT: the DCT's basis functions, dealt to the outputs at random."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dctps.counter import derive_key, permutations, signs
from dctps.gpu.products import Products
from dctps.kernels import Filters, has_plan
from dctps.offsets.base import Offset
from dctps.offsets.factors import Factors, dct_factors
from dctps.offsets.products import dct_products, outputs_of, sides
from dctps.offsets.registry import register_offset
from dctps.transforms import dct, dct_rows, idct
from dctps.transforms.tables import shape_table

_CPU = torch.device("cpu")


@register_offset("sdct")
class SDCTOffset(Offset):
    """Each output's filter is one separable cosine, `phi[u,a,b](c,i,j) = dct_C[u,c] dct_kh[a,i] dct_kw[b,j]`.

    Per group, outputs take the n functions in the order of a permutation; each further n outputs take a
    fresh permutation, and a fresh sign per channel and per spatial position. With R rounds of n,
    round r of group g uses permutation g R + r of the key (seed, layer, "offset"), over functions
    numbered (u kh + a) kw + b, and for r > 0 the signs from draw (g R + r)(C + kh kw) on, the
    channels' first, of the key (seed, layer, "offset-signs"). Every filter has norm 1.
    """

    draws = 2

    @property
    def row_cost(self) -> float:
        """A transform for each group and round, and the outputs' selection."""
        return 7.0 * self.groups * self.rounds * self.in_features + self.out_features

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """D as a tensor of the weight's shape."""
        positions, flips = self._drawn(torch.device(device))
        channels, kh, kw = self._axes
        frequency = positions.long() % self.in_features
        u, a, b = frequency // (kh * kw), frequency // kw % kh, frequency % kw
        fine = math.isqrt(channels - 1) + 1
        channel = dct_rows(u, channels, -(-channels // fine), fine, dtype=dtype).flatten(1)[:, :channels]
        rows = dct_rows(a, kh, 1, kh, dtype=dtype)[:, 0]
        columns = dct_rows(b, kw, 1, kw, dtype=dtype)[:, 0]
        spatial = (rows[:, :, None] * columns[:, None, :]).flatten(1)
        if self.rounds > 1:
            sign = flips.flatten(0, 1)[positions.long() // self.in_features].to(dtype)
            channel, spatial = channel * sign[:, :channels], spatial * sign[:, channels:]
        return (channel[:, :, None] * spatial[:, None, :]).reshape(self.shape)

    def apply(self, x: Tensor) -> Tensor:
        """D x: one separable transform for each group and round, of which the outputs pick their terms."""
        positions, flips = self._drawn(x.device)
        patches = self._flip(x.unflatten(-1, (self.groups, 1, self.in_features)), flips)
        return self._transform(patches, dct).flatten(-3).index_select(-1, positions)

    def adjoint(self, y: Tensor) -> Tensor:
        """D^T y: the outputs' terms, transformed back."""
        positions, flips = self._drawn(y.device)
        spectrum = y.new_zeros(*y.shape[:-1], self.groups * self.rounds * self.in_features)
        spectrum = spectrum.index_copy(-1, positions.long(), y)
        patches = self._transform(spectrum.unflatten(-1, (self.groups, self.rounds, -1)), idct)
        return self._flip(patches, flips).sum(-2).flatten(-2)

    @property
    def has_filters(self) -> bool:
        """Convolutions of one group, where there is a native transform of their channels."""
        if self.groups > 1 or len(self.shape) == 2:
            return super().has_filters
        return has_plan(self.shape[1])

    @property
    def filter_cost(self) -> float:
        """A filter for each output, and a transform for each round."""
        channels = self.shape[1]
        return super().filter_cost + 4.0 * self.rounds * channels * channels.bit_length()

    def filters(self) -> Filters:
        """One cosine transform of the channels, and one of kh * kw filters for each output."""
        channels, kh, kw = self._axes
        if channels == 1 and self.rounds > 1:
            return super().filters()
        positions = self._drawn_part(_CPU, 0)
        bank = _spatial_cosines((kh, kw), torch.float32, _CPU)
        if channels == 1:
            return Filters(1, bank, self.groups, positions)
        if self.rounds == 1:
            return Filters(1, bank, channels, positions, cosine=channels)
        sign = self._drawn_part(_CPU, 1)[0].float()
        bank = (bank * sign[:, None, channels:]).flatten(0, 1)
        signs = sign[:, :channels].contiguous()
        return Filters(1, bank, self.rounds * channels, positions, cosine=channels, signs=signs)

    def weight_filters(self) -> Filters:
        """The same, held: O(m + n) numbers but where a depthwise layer's rounds make all of D."""
        if self._axes[0] == 1 and self.rounds > 1:
            return self.filters()
        return self.memo("weight_filters", self.filters)

    @property
    def has_factors(self) -> bool:
        """Any layer."""
        return True

    def factors(self, *, dtype: torch.dtype, device: torch.device) -> Factors:
        """Rows of the DCT-II matrix of the channels, and for a k x k kernel filters of one channel."""
        channels, kh, kw = self._axes
        indices = self._derived("factors", device, lambda: self._choices(device))
        if kh * kw == 1:
            left, right = dct_factors(channels, channels, channels, dtype, device)
            return Factors(left, right, *indices)  # type: ignore[arg-type]
        left = _spatial_cosines((kh, kw), dtype, device)[:, :, None]
        right = _cosine_matrix(channels, dtype, device)[:, None]
        return Factors(left, right, *indices)  # type: ignore[arg-type]

    @property
    def sides(self) -> tuple[int, int] | None:
        """Of n, on rows."""
        return sides(self.in_features) if self.groups == math.prod(self.shape[2:]) == 1 else None

    def products(self, device: torch.device) -> Products:
        """A transform for each round of outputs, from the second on under signs."""
        n = self.in_features
        positions, flips = self._drawn(device)
        first, between, last = dct_products(n, device)
        signs = flips[0, :, :n] * flips[0, :, n:] if self.rounds > 1 else None
        order = outputs_of(positions, self.rounds, n)
        return Products(between.shape[1:], first, between, last, signs, order)  # type: ignore[arg-type]

    def _choices(self, device: torch.device) -> tuple[Tensor, ...]:
        """Which vectors an output takes, and where there are several rounds each one's signs."""
        positions, flips = self._drawn(device)
        n, (channels, kh, kw) = self.in_features, self._axes
        frequencies = positions.long() % n
        spatial, channel = (frequencies % (kh * kw)).int(), (frequencies // (kh * kw)).int()
        indices = (channel, channel) if kh * kw == 1 else (spatial, channel)
        if self.rounds == 1:
            return indices
        flips = flips.flatten(0, 1)
        signs = (flips[:, channels:, None] * flips[:, None, :channels]).flatten(1)
        if self.out_features == len(signs) * n:
            return *indices, signs
        return *indices, signs, (positions // n).int()

    def norm(self) -> float:
        """sqrt(m): every filter has norm 1."""
        return math.sqrt(self.out_features)

    @property
    def rounds(self) -> int:
        """R: how often the n functions are dealt out in each group."""
        return -(-(self.out_features // self.groups) // self.in_features)

    @property
    def _axes(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a patch; a linear layer's patch is one pixel."""
        channels, kh, kw = (*self.shape[1:], 1, 1)[:3]
        return channels, kh, kw

    def _draw(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Each output's position among the (group, round, function) triples; the signs, -1 or 1."""
        n, blocks = self.in_features, self.groups * self.rounds
        order = permutations(derive_key(self.seed, self.layer, "offset"), blocks, n, device=device)
        order = order + n * torch.arange(blocks, dtype=torch.int64, device=device)[:, None]
        positions = order.reshape(self.groups, -1)[:, : self.out_features // self.groups].flatten()
        if self.rounds == 1:
            return positions.int(), torch.empty(0, dtype=torch.int8, device=device)
        channels, kh, kw = self._axes
        width = channels + kh * kw
        key = derive_key(self.seed, self.layer, "offset-signs")
        flips = signs(key, blocks * width, device=device).to(torch.int8)
        flips = flips.reshape(self.groups, self.rounds, width)
        flips[:, 0] = 1
        return positions.int(), flips

    def _flip(self, patches: Tensor, flips: Tensor) -> Tensor:
        """Each round's signs on (*, groups, rounds, n); one round has none."""
        if self.rounds == 1:
            return patches
        channels, _, _ = self._axes
        sign = flips[..., :channels, None] * flips[..., None, channels:]
        return patches * sign.flatten(-2).to(patches.dtype)

    def _transform(self, patches: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """The transform along channel, row and column of (*, n)."""
        if len(self.shape) == 2:
            return transform(patches)
        cube: Tensor = patches.unflatten(-1, self._axes)
        for axis in (-1, -2, -3):
            cube = transform(cube.transpose(axis, -1)).transpose(axis, -1)
        return cube.flatten(-3)


@shape_table
def _spatial_cosines(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The kh * kw products of cosines along rows and columns, (kh * kw, kh * kw)."""
    rows, columns = (_cosine_matrix(k, torch.float64, device) for k in size)
    return torch.kron(rows, columns).to(dtype)


@shape_table
def _cosine_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II matrix, (size, size)."""
    return dct_rows(torch.arange(size, dtype=torch.int64, device=device), size, 1, size, dtype=torch.float64)[
        :, 0
    ].to(dtype)
