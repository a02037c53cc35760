"""D on rows as two small matrix products, which a GPU's tensor cores compute.

    D x = (Y at the outputs),   Y[k1, k2] = Re sum_j2 T[k1, j2] (F v)[k1, j2] G[j2, k2]

with v the inputs as an a x b tile. Of a DCT of length q = a b, in Makhoul's order and k = k1 + a k2,

    F[k1, j1] = exp(-2 pi i j1 k1 / a)
    T[k1, j2] = sqrt(2 / q) exp(-i pi k1 (4 j2 + 1) / 2q)
    G[j2, k2] = exp(-i pi k2 (4 j2 + 1) / 2b)

and Y[0, 0] times sqrt(1/2). Hadamard's matrix is the Kronecker product of F and G, real and without T, and
k = k1 b + k2. The tables depend on q alone, and hold 2 (a^2 + q + b^2) numbers.

Reference: Makhoul, "A fast cosine transform in one and two dimensions", IEEE ASSP 28, 1980, for v.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from dctps.transforms import hadamard_matrix
from dctps.transforms.tables import shape_table

LARGEST = 128  # of a and b: a tile of more does not fit a multiprocessor


@functools.cache
def sides(q: int) -> tuple[int, int] | None:
    """(a, b) with a b = q, a >= b and as alike as can be; None where a would be above `LARGEST`."""
    b = next(d for d in range(math.isqrt(q), 0, -1) if q % d == 0)
    return (q // b, b) if q // b <= LARGEST else None


def dct_products(q: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """F, T and G of the DCT-II of length q, which has `sides`."""
    pair = sides(q)
    assert pair is not None
    first, between, last = (make(pair, torch.float32, device) for make in (_first, _between, _last))
    return first, between, last


def hadamard_products(q: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """F and G of Hadamard's matrix of size q, times n^(-1/2)."""
    pair = sides(q)
    assert pair is not None
    a, b = (hadamard_matrix(side, torch.float32, device) for side in pair)
    return (a / math.sqrt(n))[None], b[None]


def outputs_of(positions: Tensor, blocks: int, q: int) -> Tensor:
    """The table `order` from each output's entry among those of all blocks, int32 (blocks, q)."""
    order = torch.full((blocks * q,), len(positions), dtype=torch.int32, device=positions.device)
    numbers = torch.arange(len(positions), dtype=torch.int32, device=positions.device)
    return order.index_copy(0, positions.long(), numbers).reshape(blocks, q)


@shape_table
def _first(pair: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    a, _ = pair
    index = torch.arange(a, dtype=torch.int64, device=device)
    turns = index[:, None] * index % a
    return _circle(-2 * turns, a, dtype)


@shape_table
def _between(pair: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    a, b = pair
    q = a * b
    rows, columns = (torch.arange(side, dtype=torch.int64, device=device) for side in pair)
    return _circle(-rows[:, None] * (4 * columns + 1), 2 * q, torch.float64).mul(math.sqrt(2 / q)).to(dtype)


@shape_table
def _last(pair: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    _, b = pair
    index = torch.arange(b, dtype=torch.int64, device=device)
    return _circle(-(4 * index[:, None] + 1) * index, 2 * b, dtype)


def _circle(numerator: Tensor, denominator: int, dtype: torch.dtype) -> Tensor:
    """Real and imaginary part of exp(i pi numerator / denominator), exact before the functions."""
    phase = (numerator % (2 * denominator)).double() * (math.pi / denominator)
    return torch.stack([phase.cos(), phase.sin()]).to(dtype)
