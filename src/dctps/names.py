"""Look a name up in a registry, and help where it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry of `table` under `name`.

    Args:
        kind: what the table holds, in the singular, for the message: `"offset"`.
        table: the registry.
        name: what the user typed.

    Raises:
        ValueError: no such entry; the message gives the nearest names, or all where none is near.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=3)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(table)}"
    raise ValueError(f"unknown {kind} {name!r}: {advice}")
