"""Tables of the native DCT for one length: where inputs and frequencies lie in a tile, and twiddle factors.

The layout is that of `read_dct_plan` in csrc/common/fft.h: int32 [L, number of factors, factors...] in 32
numbers, then slot (q,), place (q,); float32 post (q // 2 + 1, 4), then for each pass roots (of primes above
5) and twiddles.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from dctps.transforms.tables import shape_table

_HEADER = 32
_PRIMES = (61, 59, 53, 47, 43, 41, 37, 31, 29, 23, 19, 17, 13, 11, 7, 5, 3)  # one of r costs O(r) an element
_OWN = (2, 3, 4, 5, 8)  # radices with a routine of their own


@functools.cache
def has_plan(q: int) -> bool:
    """Whether the native DCT does length q: no prime factor above 61."""
    return _factors(_length(q)) is not None


@shape_table
def dct_indices(q: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The int32 table of length q."""
    length = _length(q)
    factors = _factors(length) or []
    header = [length, len(factors), *factors, *[0] * _HEADER][:_HEADER]
    element = torch.arange(length, dtype=torch.int64, device=device)
    position, rest = torch.zeros_like(element), length
    for r in reversed(factors):  # the last pass combines r interleaved transforms
        rest //= r
        position += element % r * rest
        element = element // r
    i = torch.arange(q, dtype=torch.int64, device=device)
    v = torch.where(i % 2 == 0, i // 2, q - 1 - i // 2)  # Makhoul: even inputs ascending, odd ones descending
    slot = 2 * position[v // 2] + v % 2 if q % 2 == 0 else 2 * position[v]
    place = torch.where(2 * i <= q - q % 2, 2 * i, 2 * (q - i) + 1)
    if q % 2 == 0:
        place[q // 2] = 1
    return torch.cat([torch.tensor(header, dtype=torch.int64, device=device), slot, place]).to(dtype)


@shape_table
def dct_twiddles(q: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The float32 table of length q."""
    length = _length(q)
    count = torch.arange(q + 1, dtype=torch.int64, device=device)
    k = count[: q // 2 + 1].double()
    even = q % 2 == 0
    tau = torch.polar(torch.full_like(k, math.sqrt(2 / q)), -math.pi / (2 * q) * k)
    if even:
        tau[1:] /= 2
        if length % 2 == 0:
            tau[length // 2] *= 2
    sigma = tau * _roots(q, count[: q // 2 + 1]) if even else torch.zeros_like(tau)
    tau[0] = math.sqrt(1 / q)
    parts = [torch.stack([tau.real, tau.imag, sigma.real, sigma.imag], -1).flatten()]
    span = 1
    for r in _factors(length) or []:
        if r not in _OWN:
            turn = _roots(r, count[:r]).conj()
            parts.append(torch.view_as_real(turn.resolve_conj()).flatten())
        j, t = count[:span, None], count[1:r]
        parts.append(torch.view_as_real(_roots(span * r, j * t)).flatten())
        span *= r
    return torch.cat(parts).to(dtype)


def _length(q: int) -> int:
    """Of the complex FFT: pairs of an even number of reals are complex numbers."""
    return q // 2 if q % 2 == 0 else q


def _factors(length: int) -> list[int] | None:
    """Radices, odd ones first: the first pass has no twiddles, and late ones cross the whole tile."""
    factors = []
    for r in _PRIMES:
        while length % r == 0:
            factors.append(r)
            length //= r
    if length & (length - 1):
        return None
    twos = length.bit_length() - 1
    if twos % 3 == 1 and twos > 1:
        factors += [4, 4]
        twos -= 4
    elif twos % 3:
        factors.append(2 ** (twos % 3))
        twos -= twos % 3
    return factors + [8] * (twos // 3)


def _roots(length: int, exponent: Tensor) -> Tensor:
    """exp(-2 pi i e / length), complex128; the integer is reduced first, so that the angle is exact."""
    angle = (exponent % length).double() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)
