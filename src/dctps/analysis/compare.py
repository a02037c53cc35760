"""Runs side by side: a line for each value of some fields, with means and spreads over the runs of a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dctps.analysis.aggregate import Cell
from dctps.analysis.fates import Fates
from dctps.analysis.runs import Run
from dctps.analysis.style import to_csv as csv_of
from dctps.experiments.config import RunConfig
from dctps.names import lookup
from dctps.tables import aligned

_REPEATS = ("seed", "batch_seed", "plugin")  # what the runs of one line differ in
_USUAL = ("model", "dataset", "method", "density")
_RUN = "run"  # a field of its own: the name


@dataclass(frozen=True)
class Row:
    """Runs that agree in the fields of a table; `others` are the states of those not finished, by name."""

    key: tuple[Any, ...]
    test: Cell
    validation: Cell
    numbers: int | None
    disk_bytes: int | None
    seconds: float | None
    others: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Rows, in the order of their first runs, by the `fields`."""

    fields: tuple[str, ...]
    rows: list[Row]


def compare(fates: Fates, by: Sequence[str] | None = None) -> Comparison:
    """Group runs by fields of `RunConfig`, or by `"run"`.

    Args:
        fates: of the runs.
        by: the fields (None: those that tell the runs apart, the seed aside, and no more than needed: a
            method decides its offset).

    Raises:
        ValueError: an unknown field; the message gives the nearest.
    """
    names, states = fates.names, fates.states
    if by is None:
        chosen = _telling(list(names))
    else:
        known = dict.fromkeys([_RUN, *(each.name for each in fields(RunConfig))])
        for name in by:
            lookup("field", known, name)
        chosen = tuple(by)
    groups: dict[tuple[Any, ...], list[RunConfig]] = {}
    for config, name in names.items():
        key = tuple(name if each == _RUN else getattr(config, each) for each in chosen)
        groups.setdefault(key, []).append(config)
    runs = {run.config: run for run in fates.runs}
    rows = []
    for key, configs in sorted(groups.items(), key=lambda group: tuple(map(_place, group[0]))):
        own = [runs[config] for config in configs if config in runs]
        others = {names[c]: states[c] for c in configs if states[c] != "finished"}
        rows.append(_row(key, own, len(configs), others))
    for name, state in fates.unknown():
        nothing = Cell((), 1)
        key = tuple(name if each == _RUN else None for each in chosen)
        rows.append(Row(key, nothing, nothing, None, None, None, {name: state}))
    return Comparison(chosen, rows)


def _telling(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """The fields that tell runs apart which others before them do not; the usual ones where none does."""
    chosen: tuple[str, ...] = ()
    order = [*_USUAL, *(each.name for each in fields(RunConfig) if each.name not in _USUAL)]
    for name in order:
        if name in _REPEATS:
            continue
        values: dict[tuple[Any, ...], set[Any]] = {}
        for config in configs:
            values.setdefault(tuple(getattr(config, each) for each in chosen), set()).add(
                getattr(config, name)
            )
        if any(len(found) > 1 for found in values.values()):
            chosen += (name,)
    return chosen or _USUAL


def _place(value: Any) -> tuple[bool, bool, Any]:
    """Nothing first, then numbers, the largest first, then words."""
    is_number = isinstance(value, int | float)
    return value is not None, not is_number, (-value if is_number else str(value))


def _row(key: tuple[Any, ...], runs: Sequence[Run], wanted: int, others: dict[str, str]) -> Row:
    finished = sorted((run for run in runs if run.summary is not None), key=lambda run: run.config.seed)

    def cell(value: Callable[[Run], float | None]) -> Cell:
        return Cell(tuple(v for run in finished if (v := value(run)) is not None), wanted)

    def same(value: Callable[[Run], Any]) -> Any:
        values = {value(run) for run in finished}
        return values.pop() if len(values) == 1 else None

    summaries = [run.summary for run in finished if run.summary is not None]
    seconds = [float(summary["seconds"]) for summary in summaries if "seconds" in summary]
    return Row(
        key, cell(lambda run: run.test_accuracy), cell(lambda run: run.max_val_accuracy),
        same(lambda run: run.numbers_trained),
        same(lambda run: run.summary and run.summary["report"].get("disk_bytes")),
        sum(seconds) / len(seconds) if seconds else None, others,
    )  # fmt: skip


def to_text(table: Comparison) -> str:
    """For a terminal; runs that are not finished stand below their line."""
    cells = _cells(table)
    lines = aligned([[*row[:-1]] for row in cells], range(len(table.fields), len(cells[0]) - 1))
    told = [lines[0]]
    for line, row in zip(lines[1:], table.rows, strict=True):
        told += [line, *(f"    {name}: {state}" for name, state in row.others.items())]
    return "\n".join(told)


def to_markdown(table: Comparison) -> str:
    """A table of Markdown."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in _cells(table))
    rule = [
        " --- " if i < len(table.fields) or i == len(header) - 1 else " ---: " for i in range(len(header))
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def to_csv(table: Comparison) -> str:
    """With a column for each number; accuracies are fractions, and every value of the test's is there."""
    rows = []
    for row in table.rows:
        test, val = row.test, row.validation
        rows.append({
            **dict(zip(table.fields, row.key, strict=True)),
            "n": test.n, "wanted": test.wanted, "test_mean": test.mean, "test_std": test.std,
            "val_mean": val.mean, "val_std": val.std, "numbers_trained": row.numbers, "bytes": row.disk_bytes,
            "seconds": row.seconds, "test_values": " ".join(map(repr, test.values)),
            "not_finished": _told(row),
        })  # fmt: skip
    return csv_of(rows).decode().rstrip("\n")


FORMATS: dict[str, Callable[[Comparison], str]] = {"text": to_text, "csv": to_csv, "markdown": to_markdown}


def _cells(table: Comparison) -> list[list[str]]:
    """All as words, the header first, the runs that are not finished last."""
    header = ["n", "test %", "max. val. %", "numbers trained", "bytes", "seconds", "not finished"]
    return [[*table.fields, *header]] + [
        [
            *(_word(value) for value in row.key),
            str(row.test.n) if row.test.n == row.test.wanted else f"{row.test.n} of {row.test.wanted}",
            _percent(row.test),
            _percent(row.validation),
            *("" if count is None else f"{count:,}" for count in (row.numbers, row.disk_bytes)),
            "" if row.seconds is None else f"{row.seconds:,.0f}",
            _told(row),
        ]
        for row in table.rows
    ]


def _told(row: Row) -> str:
    return "; ".join(f"{name}: {state}" for name, state in row.others.items())


def _percent(cell: Cell) -> str:
    if cell.mean is None:
        return ""
    return f"{100 * cell.mean:.2f}" + ("" if cell.std is None else f" ± {100 * cell.std:.2f}")


def _word(value: Any) -> str:
    return "" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
