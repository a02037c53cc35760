"""Tables of text for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(table: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """The lines of a table, its cells padded to columns.

    Args:
        table: cells by line, the header first.
        right: indices of the columns that end flush.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
