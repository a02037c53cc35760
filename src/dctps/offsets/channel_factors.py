"""The DCT of a k x k patch in factors: each output's two functions of the channel, and a basis of few.

    cos(w_o (2(s C + c) + 1)) = cos(2 w_o s C) cos(w_o (2c + 1)) - sin(2 w_o s C) sin(w_o (2c + 1))

With w_o = pi o / 2q for o < m, the functions of the channel c are band-limited: a basis of few discrete
prolate spheroidal sequences holds them. All tables depend on the layer's shape alone, and are made in
float64 a few outputs at a time.

Reference: Slepian, "Prolate spheroidal wave functions V", Bell System Technical Journal 57 (1978).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dctps.transforms.tables import shape_table

Size = tuple[int, int, int]  # m, channels, taps

_CUT = 1e-7  # of the channel factors' norm, what a basis may leave out
_BLOCK = 32  # outputs whose factors are in memory in float64
_PAST_BAND = 64  # sequences past the band, where the factors' part in them has long died out


@shape_table
def channel_basis(size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The basis, (r, channels)."""
    return _exact_basis(size).to(device, dtype)


@shape_table
def channel_coordinates(size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors in the basis, (2 m, r)."""
    basis = _exact_basis(size)
    return torch.cat([(block @ basis.T).to(device, dtype) for block in _factor_blocks(size)])


@shape_table
def channel_factors(size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors themselves, (2 m, channels)."""
    return torch.cat([block.to(device, dtype) for block in _factor_blocks(size)])


@shape_table
def spatial_filters(size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each output's two filters, (2 m, taps)."""
    m, channels, taps = size
    angles = _angles(_integers(0, m), 2 * channels * _integers(0, taps), _length(size))
    return torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1).to(device, dtype)


def _length(size: Size) -> int:
    m, channels, taps = size
    return max(m, channels * taps)


def _integers(first: int, past: int) -> Tensor:
    """On the CPU, where all factors are made, so that they are the same for every device."""
    return torch.arange(first, past, dtype=torch.int64, device="cpu")


def _angles(o: Tensor, at: Tensor, q: int) -> Tensor:
    """Pi o at / 2q as (outputs, places), float64, reduced exactly."""
    return (o[:, None] * at % (4 * q)).double() * (math.pi / (2 * q))


def _factor_blocks(size: Size) -> Iterator[Tensor]:
    """Outputs' two functions of the channel, scaled as D's rows; blocks of float64 (2 outputs, channels)."""
    m, channels, _ = size
    q = _length(size)
    for first in range(0, m, _BLOCK):
        angles = _angles(_integers(first, min(first + _BLOCK, m)), 2 * _integers(0, channels) + 1, q)
        factors = torch.stack([angles.cos(), angles.sin()], 1).mul_(math.sqrt(2 / q))
        if first == 0:
            factors[0] *= math.sqrt(0.5)
        yield factors.flatten(0, 1)


def _exact_basis(size: Size) -> Tensor:
    """Orthonormal functions of the channel that hold the factors up to `_CUT`; float64 (r, channels)."""
    m, channels, taps = size
    basis = _sequences(channels, m / _length(size))[: m // taps + _PAST_BAND]
    energy = sum((block @ basis.T).square_().sum(0) for block in _factor_blocks(size))
    left_out = torch.as_tensor(energy).flip(0).cumsum(0).flip(0).sqrt()
    return basis[: int((left_out > _CUT * left_out[0]).sum())].contiguous()


def _sequences(n: int, band: float) -> Tensor:
    """Slepian's sequences of length n and bandwidth band / 2, the most concentrated first; float64 (n, n).

    They are the eigenvectors of a tridiagonal matrix, whose eigenvalues lie well apart: the same wherever
    they are made. It reads the same backwards, so that even and odd sequences are found each in half of it.
    """
    c = torch.arange(n, dtype=torch.float64, device="cpu")
    diagonal = ((n - 1 - 2 * c) / 2) ** 2 * math.cos(math.pi * band)
    beside = c[1:] * (n - c[1:]) / 2
    half, middle = n // 2, n % 2
    halves = []
    for sign in (1, -1):
        own = half + (middle if sign == 1 else 0)
        matrix = torch.diag(diagonal[:own]) + torch.diag(beside[: own - 1], -1)
        if middle and sign == 1 and half:
            matrix[-1, -2] *= math.sqrt(2)  # the middle is its own mirror image
        elif not middle:
            matrix[-1, -1] += sign * beside[half - 1]
        values, vectors = torch.linalg.eigh(matrix) if own else (diagonal[:0], matrix)
        left = vectors.T[:, :half] * math.sqrt(0.5)
        centre = vectors.T[:, half:] if sign == 1 else left.new_zeros(own, middle)
        halves.append((values, torch.cat([left, centre, sign * left.flip(1)], 1)))
    order = torch.cat([values for values, _ in halves]).argsort(descending=True)
    return torch.cat([vectors for _, vectors in halves])[order]
