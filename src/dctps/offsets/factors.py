"""D as products of short vectors, from which a device without code of ours makes it in one operation.

    D[o, s * T + c] = sign * Re(left[i_o, s] right[j_o, c])

A dct's row is such a product by cos(a + b) = Re(exp(ia) exp(ib)); the factors are complex. A separable filter
and a row of Hadamard's matrix are products of real vectors. The vectors depend on the shape alone. What a
seed draws is which of them an output takes, and signs: O(m + n) numbers.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from dctps.transforms import dct_row_factors
from dctps.transforms.tables import shape_table


class Factors(NamedTuple):
    """D in memory order: the rows of (m, n), or of a filter (m, kh, kw, channels) if `channels_last`.

    Attributes:
        left: (rows, coarse, 1), real or complex.
        right: (rows', 1, fine), of the same dtype; coarse * fine >= n.
        left_index: int32 (m,), the row of `left` for each output; None: they are in order.
        right_index: the same for `right`.
        signs: int8 (blocks, n), or None.
        sign_index: int32 (m,), each output's row of `signs`; None: equal runs of outputs take them in turn.
        channels_last: whether n is read with the channel fastest.
    """

    left: Tensor
    right: Tensor
    left_index: Tensor | None = None
    right_index: Tensor | None = None
    signs: Tensor | None = None
    sign_index: Tensor | None = None
    channels_last: bool = True


@functools.cache
def split(n: int) -> tuple[int, int]:
    """(coarse, fine) of similar lengths: n = coarse * fine where divisors allow, else a little more.

    Of similar pairs the one whose `fine` holds the largest power of two, up to 64: a kernel then writes whole
    vectors.
    """
    pairs = [(n // fine, fine) for fine in range(1, n + 1) if n % fine == 0]
    least = min(sum(pair) for pair in pairs)
    if least <= 4 * math.sqrt(n):
        similar = [pair for pair in pairs if sum(pair) <= 1.5 * least]
        return min(similar, key=lambda pair: (-math.gcd(pair[1], 64), sum(pair)))
    fine = math.isqrt(n - 1) + 1
    return -(-n // fine), fine


def dct_factors(rows: int, q: int, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """`left` and `right` of the first n columns of the first rows of the DCT-II matrix of size q."""
    size = rows, q, *split(n)
    return _dct_left(size, dtype, device), _dct_right(size, dtype, device)


_Size = tuple[int, int, int, int]


@shape_table
def _dct_left(size: _Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _dct_vectors(size, dtype, device)[0]


@shape_table
def _dct_right(size: _Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _dct_vectors(size, dtype, device)[1]


def _dct_vectors(size: _Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, q, coarse, fine = size
    frequencies = torch.arange(rows, dtype=torch.int64, device=device)
    left, right = dct_row_factors(frequencies, q, coarse, fine, dtype=dtype)
    # left = (cos a, -sin a) and right = (cos b, sin b): the real part of (cos a + i sin a)(cos b + i sin b).
    return torch.complex(left[..., :1], -left[..., 1:]), torch.complex(right[:, :1], right[:, 1:])
