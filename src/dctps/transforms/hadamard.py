"""The Hadamard transform in Sylvester's order: H[i, j] = (-1)^popcount(i & j), so H = H^T and H H = q I."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.transforms.tables import shape_table

_RADIX = 32  # one small matrix product does five butterfly stages in one pass over memory


def hadamard(x: Tensor) -> Tensor:
    """H x on the last dimension, unnormalised, in O(q log q).

    Args:
        x: floating point, shape (*, q), q a power of two.

    Raises:
        ValueError: q is not a power of two.
    """
    q = int(x.shape[-1])
    if q & (q - 1) or q == 0:
        raise ValueError(f"the Hadamard transform needs a power-of-two length, got {q}")
    stride, y = 1, x.reshape(-1, q)
    while stride < q:
        radix = min(_RADIX, q // stride)
        blocks = y.reshape(-1, radix, stride)
        matrix = hadamard_matrix(radix, x.dtype, x.device)
        y = blocks.squeeze(-1) @ matrix if stride == 1 else matrix @ blocks
        stride *= radix
    return y.reshape(x.shape)


def hadamard_rows(rows: Tensor, coarse: int, fine: int, *, dtype: torch.dtype) -> Tensor:
    """Entries H[r, s * fine + c], by H's Kronecker structure the product of two short rows.

    Args:
        rows: int64 (m,).
        coarse: number of blocks s.
        fine: length of a block, a power of two.
        dtype: of the result.

    Returns:
        shape (m, coarse, fine), entries -1 and 1.
    """
    low = _parity_signs(rows[:, None] & torch.arange(fine, dtype=torch.int64, device=rows.device)).to(dtype)
    high = _parity_signs(
        rows[:, None] & (fine * torch.arange(coarse, dtype=torch.int64, device=rows.device))
    ).to(dtype)
    return high[:, :, None] * low[:, None, :]


def hadamard_ref(x: Tensor) -> Tensor:
    """Slow twin of `hadamard`: the matrix product in float64."""
    i = torch.arange(x.shape[-1], dtype=torch.int64, device=x.device)
    return x.double() @ _parity_signs(i[:, None] & i).double()


def _parity_signs(word: Tensor) -> Tensor:
    """(-1)^popcount of each word, int64."""
    for by in (32, 16, 8, 4, 2, 1):
        word = word ^ (word >> by)
    return 1 - 2 * (word & 1)


@shape_table
def hadamard_matrix(q: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H of size q, a power of two."""
    i = torch.arange(q, dtype=torch.int64, device=device)
    return _parity_signs(i[:, None] & i).to(dtype)
