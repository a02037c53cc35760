"""The one rule that picks a path for a call.

A layer's or caller's word comes first, then the environment variable DCTPS_BACKEND, then the least estimated
time. A word names a path, or a group of paths among which the least estimated time decides. The choice is a
fixed function of the call (`path.Call`: shapes, nnz, layout, dtype, device, threads, instruction set, and
whether gradients are wanted) and of the machine's profile. It never measures: runs repeat bit for bit.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dctps.offsets import Offset
from dctps.product.cuda import on_cuda
from dctps.product.geometry import Geometry, RowGeometry
from dctps.product.machine import machine_of
from dctps.product.path import Call, Path
from dctps.product.paths import PATHS
from dctps.product.weight import Weight

Backend = Literal[
    "auto",
    "dense",
    "transform",
    "native",
    "tiles",
    "factors",
    "made",
    "kept",
    "taps",
    "depthwise",
    "rows",
    "strips",
]
WORDS: tuple[Backend, ...] = get_args(Backend)
_GROUPS: dict[str, tuple[str, ...]] = {
    "auto": tuple(path.name for path in PATHS),
    "dense": ("dense", "factors", "made", "kept", "taps", "depthwise"),
    "native": ("rows", "strips"),
}
_NATIVE = ("native", "made", "kept", "taps", "depthwise", "rows", "strips")

Costs = dict[str, float]


@dataclass(frozen=True)
class Seen:
    """One product and the path chosen for it, for an observer.

    Attributes:
        x: as the product takes it: padded, in autocast's dtype, rows as a matrix.
        weight: the layer's.
        geometry: of the product.
        backend: what the layer or the caller asked for.
        call: what the rule was told.
        path: what it chose.
    """

    x: Tensor
    weight: Weight
    geometry: Geometry
    backend: Backend
    call: Call
    path: Path


observers: list[Callable[[Seen], None]] = []  # each sees every product before it is made


def decide(call: Call, requested: str) -> Path:
    """The path for a call.

    Args:
        call: what there is to compute.
        requested: a word; `"auto"` here is not replaced by DCTPS_BACKEND.

    Raises:
        ValueError: no such word, or no path that it names can take the call.
    """
    costs = estimates(call, requested)
    if not costs:
        raise _refusal(call, requested)
    name = min(costs, key=costs.__getitem__)
    return next(path for path in PATHS if path.name == name)


def estimates(call: Call, requested: str) -> Costs:
    """Estimated nanoseconds of each path that the rule considers, in the order in which equals are chosen.

    On CUDA there are no estimates, all are infinite: the order is the rule (`cuda.py`).
    """
    check_backend(requested, call.offset.layer)
    named = paths_of(requested)
    possible = [path for path in PATHS if path.name in named and not path.refusal(call)]
    if call.device == "cuda":
        names = {path.name for path in possible}
        return {name: math.inf for name in on_cuda(call) if name in names}
    # A path that is named alone is taken whatever the rule thinks of it.
    machine = machine_of(call.device, call.variant)
    return {path.name: path.cost(call, machine) for path in possible if len(named) == 1 or path.wins(call)}


@functools.cache
def environment_backend() -> Backend:
    """What the environment variable DCTPS_BACKEND says, once for the process; `"auto"` where it is not set.

    Raises:
        ValueError: it names no path.
    """
    named = os.environ.get("DCTPS_BACKEND", "auto")
    for word in WORDS:
        if word == named:
            return word
    raise ValueError(f"DCTPS_BACKEND={named!r}: choose from {', '.join(WORDS)}, or unset it")


def check_backend(backend: str, layer: str = "") -> None:
    """Refuse a word that names no path.

    Raises:
        ValueError: it is none.
    """
    if backend not in WORDS:
        where = f"layer {layer!r}: " if layer else ""
        raise ValueError(f"{where}unknown backend {backend!r}: choose from {', '.join(WORDS)}")


def paths_of(word: str) -> tuple[str, ...]:
    """The names of the paths that a word stands for."""
    return _GROUPS.get(word, (word,))


def needs_native_code(backend: str) -> bool:
    """Whether a word can be followed only where the native code was compiled, on the CPU."""
    return backend in _NATIVE


def _refusal(call: Call, requested: str) -> ValueError:
    """Which layer cannot take a path, why, who asked for it, and what to do."""
    offset: Offset = call.offset
    named = paths_of(requested)
    reasons = {path.name: path.refusal(call) for path in PATHS if path.name in named}
    rowwise = isinstance(call.geometry, RowGeometry)
    reason = reasons[named[0] if rowwise else named[-1]]
    layer = f"layer {offset.layer!r}: " if offset.layer else ""
    if environment_backend() == requested:
        asked = f"DCTPS_BACKEND={requested} asks for it: unset it, or set this layer's own .backend"
    else:
        asked = f"backend={requested!r} asks for it: use backend='auto' or 'dense'"
    return ValueError(f"{layer}{reason}; {asked}")
