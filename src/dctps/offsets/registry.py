"""Names for offsets, on the command line and in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dctps.names import Registry
from dctps.offsets.base import Offset

OFFSETS: Registry[type[Offset]] = Registry("offset")


def register_offset(name: str) -> Callable[[type[Offset]], type[Offset]]:
    """Class decorator that gives an `Offset` subclass its name.

    Raises:
        ValueError: the name is taken.
    """

    def register(cls: type[Offset]) -> type[Offset]:
        cls.name = name
        return OFFSETS.register(name)(cls)

    return register


def build_offset(
    name: str, shape: Sequence[int], *, groups: int = 1, seed: int = 0, layer: str = ""
) -> Offset:
    """The offset `name` for a weight of `shape`; `build_offset(**offset.spec)` rebuilds `offset`.

    Args:
        name: a registered name: `zero`, `dct`, `sdct`, `hadamard`, `gaussian`, or a user's own.
        shape: of the weight: (out, in) or (out, in/groups, kh, kw).
        groups: of a convolution.
        seed: of the offset's draws.
        layer: qualified name of the layer, so that layers under one seed draw apart.

    Raises:
        ValueError: unknown name (the message gives the nearest), or a shape that is no weight's.
    """
    return OFFSETS.find(name)(shape, groups=groups, seed=seed, layer=layer)


def list_offsets() -> list[str]:
    """All registered names."""
    return list(OFFSETS)
