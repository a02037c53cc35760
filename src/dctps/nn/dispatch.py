"""Which path a layer takes: a fixed rule on shapes and nnz, so that runs repeat bit for bit.

    dense       W = alpha * D + S is made for the one call, and the dense kernel applied
    transform   D by its fast transform, S by its nonzeros, in torch operations
    native      the same by the native kernel, on the CPU, where it was compiled; then torch's is no choice

The costs are nanoseconds for each input row on one core, forward and backward, fitted to measurements of
square and narrow layers of 10 to 2048 outputs, 1 to 256 rows, densities of 0.01% to 50%, on an AMD EPYC
(Zen 4, AVX-512, 1 MB of L2 for each core); only their ratios matter.
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

_MULTIPLY_ADD = 0.06  # of a dense matrix product
_MAKE_ENTRY = 8.6  # of W, in each direction
_DENSE_NONZERO = 4.9  # its place in W and in W's gradient
_DENSE_CALL = 750_000.0  # overhead of the dense path, for each call
_MADE = (0.06, 8.0, 4.0, 550_000.0)  # the same four of a 1 x 1 convolution, whose W native code makes
_MOVE = 4.5  # an element into and out of the sparse kernel's layout
_NONZERO = 0.6  # of the sparse product
_CALL = 930_000.0  # overhead of the transform path, for each call
_NATIVE_MOVE = 0.065  # an element into or out of a tile
_NATIVE_ROW = 30.0  # a row, however short
_NATIVE_TRANSFORM = 1.6  # an element of the longer side
_NATIVE_NONZERO = 0.118
_NATIVE_INDEX = 7.2  # a nonzero, once
_NATIVE_WALK = 3.6  # the same for up to two tiles, which need no index
_NATIVE_CALL = 120_000.0
_TILE = 16  # rows
_FEW = ((4, 8.0), (8, 10.0))  # up to so many rows cost as so many, in narrower tiles


def choose_backend(
    backend: Backend, offset: Offset, *, rows: int, nnz: int, native: bool = False, made: bool = False
) -> Backend:
    """`backend` itself, or for `"auto"` the path that the rule estimates to be faster.

    Args:
        backend: `"auto"`, `"dense"`, `"transform"` or `"native"`.
        offset: the layer's D.
        rows: input rows of the call: batch, or batch times pixels.
        nnz: of S.
        native: whether the native kernel does this offset, on these tensors.
        made: whether native code makes the W of the path `dense`.

    Raises:
        ValueError: another backend, `"transform"` where the offset has none, `"native"` where it cannot be.
    """
    if backend == "auto":
        return cheapest(linear_costs(offset, rows=rows, nnz=nnz, native=native, made=made))
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


def linear_costs(offset: Offset, *, rows: int, nnz: int, native: bool, made: bool = False) -> Costs:
    """The rule's estimates for `choose_backend`, which takes the least.

    Returns:
        nanoseconds of one core for each input row, forward and backward, by path. Where there is a native
        kernel the torch path has none: it is not considered.
    """
    m, n, rows = offset.out_features, offset.in_features, max(rows, 1)
    multiply, entry, nonzero, call = (
        _MADE if made else (_MULTIPLY_ADD, _MAKE_ENTRY, _DENSE_NONZERO, _DENSE_CALL)
    )
    dense = m * n * (multiply + entry / rows) + (nonzero * nnz + call) / rows
    if native:
        line = (
            _NATIVE_ROW + _NATIVE_MOVE * (m + n) + (_NATIVE_TRANSFORM * max(m, n) if offset.row_cost else 0.0)
        )
        once = (_NATIVE_INDEX if rows > 2 * _TILE else _NATIVE_WALK) * nnz + _NATIVE_CALL
        return {"dense": dense, "native": (_tiled(rows) * (line + _NATIVE_NONZERO * nnz) + once) / rows}
    if math.isinf(offset.row_cost):
        return {"dense": dense}
    transform = 3 * offset.row_cost + _CALL / rows
    if nnz:
        transform += _MOVE * (m + n) + _NONZERO * nnz
    return {"dense": dense, "transform": transform}


def _tiled(rows: int) -> float:
    """Rows that are computed: a tile that is not full takes as long as a full one."""
    for most, cost in _FEW:
        if rows <= most:
            return cost
    return float(-(-rows // _TILE) * _TILE)


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
