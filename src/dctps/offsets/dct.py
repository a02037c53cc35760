"""The paper's offset: a block of the orthonormal DCT-II matrix."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.kernels import Filters, depthwise_filters, has_plan
from dctps.offsets.base import Offset
from dctps.offsets.registry import register_offset
from dctps.transforms import dct, dct_rows, idct
from dctps.transforms.tables import shape_table

_CPU = torch.device("cpu")
_CUT = 1e-7  # of the channel factors' norm, what a basis may leave out


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
        rows = torch.arange(m, device=device)
        if len(self.shape) == 2:
            fine = math.isqrt(n - 1) + 1
            blocks = dct_rows(rows, self.size, -(-n // fine), fine, dtype=dtype)
            return blocks.flatten(1)[:, :n].contiguous()
        channels = self.shape[1]
        return dct_rows(rows, self.size, n // channels, channels, dtype=dtype).mT.reshape(self.shape)

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
        """A pair of filters for each output, by the angle-addition rule.

            cos(w_o (2(s C + c) + 1)) = cos(2 w_o s C) cos(w_o (2c + 1)) - sin(2 w_o s C) sin(w_o (2c + 1))

        With w_o = pi o / 2q for o < m, the functions of the channel c are band-limited: a basis of few
        discrete prolate spheroidal sequences holds them, which the tables of the shape are made of.

        Reference: Slepian, "Prolate spheroidal wave functions V", Bell System Technical Journal 57 (1978).
        """
        m, channels, kh, kw = self.shape
        if channels == 1:
            bank = _depthwise_filters((m, kh * kw), torch.float32, _CPU)
            return depthwise_filters(bank, self.groups, torch.arange(m, dtype=torch.int32))
        if kh * kw == 1:
            outputs = torch.arange(m, dtype=torch.int32)
            return Filters(1, torch.ones(1, 1), self.size, outputs, cosine=self.size)
        size = (m, channels, kh * kw)
        basis = _channel_basis(size, torch.float32, _CPU)
        if basis.shape[0] * (2 * m + channels) < 2 * m * channels:
            mix: tuple[Tensor, ...] = (basis, _channel_coordinates(size, torch.float32, _CPU))
        else:
            mix = (_channel_factors(size, torch.float32, _CPU),)
        return Filters(2, _spatial_filters(size, torch.float32, _CPU), 2 * m, mix=mix)

    def weight_filters(self) -> Filters:
        """W's rows are D's, read with the channel fastest."""
        return Filters(1, rows=self.size)

    def _above(self, group: int) -> int:
        """Transform rows above those of `group`."""
        return self.size - (group + 1) * (self.out_features // self.groups)

    def _channel_last(self, patches: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return patches
        cubes: Tensor = patches.unflatten(-1, (self.shape[1], -1))
        return cubes.mT.flatten(-2)

    def _channel_first(self, patches: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return patches
        cubes: Tensor = patches.unflatten(-1, (-1, self.shape[1]))
        return cubes.mT.flatten(-2)


def _angles(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """w_o (2c + 1) as (m, channels) and 2 w_o s C as (m, taps), float64."""
    m, channels, taps = size
    q = max(m, channels * taps)
    o = torch.arange(m)[:, None]
    c = o * (2 * torch.arange(channels) + 1) % (4 * q)
    s = o * (2 * channels * torch.arange(taps)) % (4 * q)
    return c.double() * (math.pi / (2 * q)), s.double() * (math.pi / (2 * q))


def _exact_factors(size: tuple[int, int, int]) -> Tensor:
    """Each output's two functions of the channel, scaled as D's row; float64 (2 m, channels)."""
    m, channels, taps = size
    by_channel, _ = _angles(size)
    factors = torch.stack([by_channel.cos(), by_channel.sin()], 1)
    factors *= math.sqrt(2 / max(m, channels * taps))
    factors[0] *= math.sqrt(0.5)
    return factors.flatten(0, 1)


def _exact_basis(size: tuple[int, int, int]) -> Tensor:
    """Orthonormal functions of the channel that hold the factors up to `_CUT`; float64 (r, channels).

    Sequences of a band and an interval are the eigenvectors of a tridiagonal matrix, whose eigenvalues lie
    well apart: the same basis wherever it is made.
    """
    m, channels, taps = size
    c = torch.arange(channels, dtype=torch.float64)
    band = 2 * math.pi * m / (2 * max(m, channels * taps))
    tridiagonal = torch.diag(((channels - 1 - 2 * c) / 2) ** 2 * math.cos(band))
    beside = torch.diag(c[1:] * (channels - c[1:]) / 2, 1)
    basis: Tensor = torch.linalg.eigh(tridiagonal + beside + beside.T).eigenvectors.T.flip(0)
    left_out = (_exact_factors(size) @ basis.T).square().sum(0).flip(0).cumsum(0).flip(0).sqrt()
    rank = int((left_out > _CUT * left_out[0]).sum())
    return basis[:rank].contiguous()


@shape_table
def _channel_basis(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The basis, (r, channels)."""
    return _exact_basis(size).to(device, dtype)


@shape_table
def _channel_coordinates(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors in the basis, (2 m, r)."""
    return (_exact_factors(size) @ _exact_basis(size).T).to(device, dtype)


@shape_table
def _channel_factors(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors themselves, (2 m, channels)."""
    return _exact_factors(size).to(device, dtype)


@shape_table
def _depthwise_filters(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """D where a group has one channel, (m, taps)."""
    m, taps = size
    return dct_rows(torch.arange(m), max(size), taps, 1, dtype=dtype).flatten(1).to(device)


@shape_table
def _spatial_filters(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each output's two filters, (2 m, taps)."""
    _, by_tap = _angles(size)
    return torch.stack([by_tap.cos(), -by_tap.sin()], 1).flatten(0, 1).to(device, dtype)
