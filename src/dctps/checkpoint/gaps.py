"""Supports as bits: sorted gaps under a Rice code.

A support of more than half of the positions is coded by its complement, so that at most m = size / 2
positions p_0 < p_1 < ... are coded, as the gaps g_i = p_i - p_(i-1) - 1, p_(-1) = -1. With the
parameter k, gap g is the remainder g mod 2^k and the quotient floor(g / 2^k). All remainders come
first, k bits each, the most significant first; then all quotients, each as so many zeros and a one.

Whatever the support, the sum of its gaps is at most size - m, so that the length

    m (1 + k) + sum floor(g_i / 2^k)

at the best k stays near the bound log2 C(size, m) on a uniformly drawn support, and far below it on
a clustered one (benchmarks/checkpoint_size.py measures both).

Reference: Rice, "Some Practical Universal Noiseless Coding Techniques", JPL Publication 79-22, 1979.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 16  # remainders unpacked at once: a bit takes a byte while it is unpacked


def encode(support: Ints, size: int) -> tuple[int, Bytes]:
    """The best Rice parameter k of a sorted support within 0..size-1, and its bits, one in each byte."""
    coded = support if 2 * len(support) <= size else _complement(support, size)
    gaps = np.diff(coded, prepend=-1) - 1
    largest = int(gaps.max()) if len(gaps) else 0
    k = int(np.argmin([len(gaps) * k + int((gaps >> k).sum()) for k in range(largest.bit_length() + 1)]))
    quotients = gaps >> k
    bits = np.zeros(len(gaps) * (k + 1) + int(quotients.sum()), dtype=np.uint8)
    remainders = bits[: len(gaps) * k].reshape(len(gaps), k)
    for column in range(k):
        remainders[:, column] = (gaps >> (k - 1 - column)) & 1
    bits[len(gaps) * k + np.cumsum(quotients + 1) - 1] = 1
    return k, bits


def decode(packed: Bytes, start: int, size: int, nnz: int, k: int) -> tuple[Ints, int]:
    """The support whose code starts at bit `start` of `packed`, and the bit after its code.

    `packed` has eight bits in a byte, the most significant first. `size` is at most 2^53, `nnz` within
    0..size, and 2^k at most `size`. Time and memory are O(nnz + bits left in `packed`), whatever the
    arguments claim. Bits that end early or give a position out of range are a ValueError.
    """
    m = min(nnz, size - nnz)
    left = 8 * len(packed) - start - m * k
    if left < m:
        raise ValueError(f"its code has too few bits for {nnz} positions")
    remainders = np.zeros(m, dtype=np.int64)
    for at in range(0, m if k else 0, _CHUNK):
        part = remainders[at : at + _CHUNK]
        bits = _unpacked(packed, start + at * k, len(part) * k).reshape(-1, k)
        for column in range(k):
            part <<= 1
            part |= bits[:, column]
    # The gaps add up to size - m at most: where the ones are further apart, no code goes on.
    ends = np.flatnonzero(_unpacked(packed, start + m * k, min(left, m + ((size - m) >> k))))[:m]
    if len(ends) < m:
        raise ValueError(f"its code gives fewer than {nnz} positions below {size}")
    end = start + m * k + (int(ends[-1]) + 1 if m else 0)
    # In floating point, for hostile remainders could add up to more than an int64 holds.
    if m and float(remainders.sum(dtype=np.float64)) > size:
        raise ValueError(f"its code gives a position beyond {size - 1}")
    # The quotients up to i add up to ends[i] - i, so that p_i = (ends[i] - i) 2^k + sum of remainders + i.
    remainders += 1 - (1 << k)
    coded = np.cumsum(remainders, out=remainders)
    coded += (1 << k) - 1
    ends <<= k
    coded += ends
    if m and int(coded[-1]) >= size:
        raise ValueError(f"its code gives a position beyond {size - 1}")
    return (coded if nnz == m else _complement(coded, size)), end


def _complement(positions: Ints, size: int) -> Ints:
    kept = np.ones(size, dtype=bool)
    kept[positions] = False
    return np.flatnonzero(kept)


def _unpacked(packed: Bytes, start: int, count: int) -> Bytes:
    return np.unpackbits(packed[start // 8 : -(-(start + count) // 8)])[start % 8 :][:count]
