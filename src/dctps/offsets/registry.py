"""Names for offsets, on the command line and in files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from dctps.names import Registry
from dctps.offsets.base import Offset

OffsetChoice = str | Callable[..., Offset] | Offset
"""A registered name; a class or function that is called as a class of offsets is; or an offset."""

OFFSETS: Registry[type[Offset]] = Registry("offset", names_classes=True)


def register_offset(name: str) -> Callable[[type[Offset]], type[Offset]]:
    """Class decorator that gives an `Offset` subclass its name.

    Raises:
        ValueError: another class has the name.
    """
    return OFFSETS.register(name)


def build_offset(
    name: OffsetChoice,
    shape: Sequence[int],
    *,
    groups: int = 1,
    seed: int = 0,
    layer: str = "",
    **options: Any,
) -> Offset:
    """The offset `name` for a weight of `shape`; `build_offset(**offset.spec)` rebuilds `offset`.

    Args:
        name: a registered name: `zero`, `dct`, `sdct`, `hadamard`, `gaussian`, or a user's own; a class, or a
            function with a class's arguments; or an offset, which must be one for such a weight.
        shape: of the weight: (out, in) or (out, in/groups, kh, kw).
        groups: of a convolution.
        seed: of the offset's draws.
        layer: qualified name of the layer, so that layers under one seed draw apart.
        options: what else a user's class has in its `spec` and takes.

    Raises:
        ValueError: unknown name (the message gives the nearest), a shape that is no weight's, or an offset of
            another shape.
        TypeError: neither a name, a class nor an offset.
    """
    if isinstance(name, Offset):
        if name.shape != tuple(shape) or name.groups != groups:
            raise ValueError(f"{name!r} does not fit a weight of shape {tuple(shape)} in {groups} groups")
        return name
    kind = (Offset.defined.get(name) or OFFSETS.find(name)) if isinstance(name, str) else name
    is_kind = issubclass(kind, Offset) if isinstance(kind, type) else callable(kind)
    offset = kind(shape, groups=groups, seed=seed, layer=layer, **options) if is_kind else None
    if not isinstance(offset, Offset):
        raise TypeError(
            f"an offset is a name ({', '.join(OFFSETS)}), a subclass of dctps.Offset or one of its objects, "
            f"got {name!r}"
        )
    return offset


@functools.lru_cache(maxsize=1024)
def offset_of(spec: str) -> Offset:
    """The offset of a spec in JSON, the same object each time while it is in use.

    It holds its draws, O(m + n) numbers, so that layers and compiled operators share them.

    Raises:
        ValueError: no spec of an offset.
        TypeError: the JSON holds no arguments of one.
    """
    return build_offset(**json.loads(spec))


def list_offsets() -> list[str]:
    """All registered names."""
    return list(OFFSETS)
