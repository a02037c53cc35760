"""Names for extension points, and help where a name is not there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
EntryT = TypeVar("EntryT")


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
    spelt = {entry.casefold(): entry for entry in table}
    typed = name.casefold()
    near = [spelt[entry] for entry in difflib.get_close_matches(typed, spelt, 1 if typed in spelt else 3)]
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(table)}"
    raise ValueError(f"unknown {kind} {name!r}: {advice}")


class Registry(dict[str, T]):
    """One kind of extension by name.

    Args:
        kind: what it holds, in the singular, for messages.
        reserved: names that mean something else and cannot be taken.
    """

    def __init__(self, kind: str, reserved: Iterable[str] = ()) -> None:
        super().__init__()
        self.kind, self.reserved = kind, frozenset(reserved)

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Decorator that puts a function or class under `name` and leaves it as it is.

        Raises:
            ValueError: the name is taken.
        """

        def put(entry: EntryT) -> EntryT:
            if name in self or name in self.reserved:
                raise ValueError(f"the {self.kind} name {name!r} is already taken: register under another")
            self[name] = entry  # type: ignore[assignment]
            return entry

        return put

    def find(self, name: str) -> T:
        """The entry under `name`.

        Raises:
            ValueError: no such entry; the message gives the nearest names.
        """
        return lookup(self.kind, self, name)
