"""Which path a layer takes: a fixed rule on shapes and nnz, so that runs repeat bit for bit.

    dense       W = alpha * D + S is made for the one call, and the dense kernel applied
    transform   D by its fast transform, S by its nonzeros

The costs are nanoseconds for each input row on one core, fitted to measurements of
`benchmarks/linear.py`; only their ratios matter.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from dctps.offsets import Offset

Backend = Literal["auto", "dense", "transform"]

_MULTIPLY_ADD = 0.015  # of a dense matrix product, forward
_MAKE_ENTRY = 4.0  # of W, once in each direction
_MOVE = 1.5  # an element into and out of the sparse kernel's layout
_NONZERO = 0.2  # of the sparse product
_CALL = 60_000.0  # overhead of the transform path above the dense one's, for each call


def choose_backend(backend: Backend, offset: Offset, *, rows: int, nnz: int) -> Backend:
    """`backend` itself, or for `"auto"` the path that the rule estimates to be faster.

    Args:
        backend: `"auto"`, `"dense"` or `"transform"`.
        offset: the layer's D.
        rows: input rows of the call: batch, or batch times pixels.
        nnz: of S.

    Raises:
        ValueError: another backend, or `"transform"` where the offset has none.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}: choose from {', '.join(get_args(Backend))}")
    if backend == "transform" and math.isinf(offset.row_cost):
        raise ValueError(f"offset {offset.name!r} has no fast transform: use backend='dense'")
    if backend != "auto":
        return backend
    m, n, rows = offset.out_features, offset.in_features, max(rows, 1)
    dense = m * n * (_MULTIPLY_ADD + _MAKE_ENTRY / rows)
    transform = offset.row_cost + _CALL / rows
    if nnz:
        transform += _MOVE * (m + n) + _NONZERO * nnz
    return "dense" if dense <= transform else "transform"
