"""Which path a layer takes: a fixed rule on shapes and nnz, so that runs repeat bit for bit.

    dense       W = alpha * D + S is made for the one call, and the dense kernel applied
    transform   D by its fast transform, S by its nonzeros, in torch operations
    native      the same by the native kernel, on the CPU, where it was compiled; then torch's is no choice

The costs are nanoseconds for each input row on one core, fitted to measurements of
`dctps bench linear --backends dense transform native`; only their ratios matter.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Literal, get_args

from dctps.offsets import Offset

Backend = Literal["auto", "dense", "transform", "native"]
Costs = dict[Backend, float]
_BACKENDS: tuple[Backend, ...] = get_args(Backend)

_MULTIPLY_ADD = 0.015  # of a dense matrix product, forward
_MAKE_ENTRY = 4.0  # of W, once in each direction
_MOVE = 1.5  # an element into and out of the sparse kernel's layout
_NONZERO = 0.2  # of the sparse product
_CALL = 60_000.0  # overhead of the transform path above the dense one's, for each call
_NATIVE_MOVE = 0.25  # an element into or out of a tile
_NATIVE_TRANSFORM = 0.5  # an element of the longer side
_NATIVE_NONZERO = 0.05
_TILE = 16  # rows


def choose_backend(backend: Backend, offset: Offset, *, rows: int, nnz: int, native: bool = False) -> Backend:
    """`backend` itself, or for `"auto"` the path that the rule estimates to be faster.

    Args:
        backend: `"auto"`, `"dense"`, `"transform"` or `"native"`.
        offset: the layer's D.
        rows: input rows of the call: batch, or batch times pixels.
        nnz: of S.
        native: whether the native kernel does this offset, on these tensors.

    Raises:
        ValueError: another backend, `"transform"` where the offset has none, `"native"` where it cannot be.
    """
    if backend == "auto":
        return cheapest(linear_costs(offset, rows=rows, nnz=nnz, native=native))
    check_backend(backend, offset.layer)
    if backend == "transform" and math.isinf(offset.row_cost):
        raise refusal(backend, offset, f"offset {offset.name!r} has no fast transform")
    if backend == "native" and not native:
        raise refusal(
            backend,
            offset,
            f"no native kernel for {offset!r} here: it takes dct, sdct, hadamard and zero offsets of one "
            "group, on CPU tensors below float64; is it compiled (`python -m dctps.kernels`)?",
        )
    return backend


def linear_costs(offset: Offset, *, rows: int, nnz: int, native: bool) -> Costs:
    """The rule's estimates for `choose_backend`, which takes the least.

    Returns:
        nanoseconds of one core for each input row, forward, by path. Where there is a native kernel the torch
        path has none: it is not considered.
    """
    m, n, rows = offset.out_features, offset.in_features, max(rows, 1)
    dense = m * n * (_MULTIPLY_ADD + _MAKE_ENTRY / rows)
    if native:
        tiles = -(-rows // _TILE) * _TILE / rows  # rows of a tile that is not full are computed all the same
        line = _NATIVE_MOVE * (m + n) + (_NATIVE_TRANSFORM * max(m, n) if offset.row_cost else 0.0)
        return {"dense": dense, "native": tiles * (line + _NATIVE_NONZERO * nnz)}
    if math.isinf(offset.row_cost):
        return {"dense": dense}
    transform = offset.row_cost + _CALL / rows
    if nnz:
        transform += _MOVE * (m + n) + _NONZERO * nnz
    return {"dense": dense, "transform": transform}


def cheapest(costs: Costs) -> Backend:
    """The path with the least cost; of equals the first."""
    return min(costs, key=costs.__getitem__)


@functools.cache
def environment_backend() -> Backend:
    """What the environment variable DCTPS_BACKEND says, once for the process; `"auto"` where it is not set.

    Raises:
        ValueError: it names no path.
    """
    named = os.environ.get("DCTPS_BACKEND", "auto")
    for backend in _BACKENDS:
        if backend == named:
            return backend
    raise ValueError(f"DCTPS_BACKEND={named!r}: choose from {', '.join(_BACKENDS)}, or unset it")


def check_backend(backend: str, layer: str = "") -> None:
    """Refuse a word that is no backend.

    Raises:
        ValueError: it is none.
    """
    if backend not in _BACKENDS:
        where = f"layer {layer!r}: " if layer else ""
        raise ValueError(f"{where}unknown backend {backend!r}: choose from {', '.join(_BACKENDS)}")


def refusal(backend: Backend, offset: Offset, reason: str) -> ValueError:
    """The error for a path that a layer cannot take: which layer, why, who asked for it, and what to do."""
    layer = f"layer {offset.layer!r}: " if offset.layer else ""
    if environment_backend() == backend:
        asked = f"DCTPS_BACKEND={backend} asks for it: unset it, or set this layer's own .backend"
    else:
        asked = f"backend={backend!r} asks for it: use backend='auto' or 'dense'"
    return ValueError(f"{layer}{reason}; {asked}")
