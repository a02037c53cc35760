"""Names for extension points, and help where a name is not there."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dctps.plugins import load_installed

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
    if name in table or (load_installed() and name in table):
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
        names_classes: whether a registered class is told its name, in its attribute `name`.
    """

    def __init__(self, kind: str, reserved: Iterable[str] = (), *, names_classes: bool = False) -> None:
        super().__init__()
        self.kind, self.reserved, self.names_classes = kind, frozenset(reserved), names_classes
        self._sources: dict[str, str] = {}

    def register(self, name: str, make: Callable[[Any], T] | None = None) -> Callable[[EntryT], EntryT]:
        """Decorator that puts a function or class under `name` and returns it unchanged.

        The same definition may come again, as when a cell of a notebook is run a second time: it then takes
        the place of the earlier one, with a warning.

        Args:
            name: for the entry.
            make: makes the entry from the function or class (None: that is the entry).

        Raises:
            ValueError: another definition has the name; the message says which.
        """

        def put(entry: EntryT) -> EntryT:
            named = hasattr(entry, "__qualname__")
            source = f"{entry.__module__}.{entry.__qualname__}" if named else repr(entry)  # type: ignore[attr-defined]
            if name in self or name in self.reserved:
                if (holder := self._sources.get(name, "a built-in one")) != source:
                    raise ValueError(
                        f"the {self.kind} name {name!r} is already taken by {holder}: register {source} "
                        f"under another name"
                    )
                warnings.warn(
                    f"{source} is defined again: the {self.kind} name {name!r} now means the new one",
                    stacklevel=2,
                )
            if self.names_classes:
                entry.name = name  # type: ignore[attr-defined]
            self[name] = entry if make is None else make(entry)  # type: ignore[assignment]
            self._sources[name] = source
            return entry

        return put

    def find(self, name: str) -> T:
        """The entry under `name`.

        Raises:
            ValueError: no such entry; the message gives the nearest names.
        """
        return lookup(self.kind, self, name)
