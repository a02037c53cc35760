"""What an offset is worth: the finished runs of a study as a file, and the tables of docs/worth.md from it.

    dctps sweep --file benchmarks/worth/NAME.toml --out runs/NAME
    python benchmarks/worth.py runs/NAME [runs/OTHER ...]

Writes benchmarks/results/worth-NAME.csv: a row for each finished run, with the fields in which the runs of
the study differ, all numbers that it trained, and what it reached. Without a folder only the
tables are filled.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

from markdown_tables import table

from dctps.analysis.runs import Run, read_runs
from dctps.analysis.style import to_csv
from dctps.benchmarking.record import commit, processor
from dctps.files import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, str]

ALWAYS = ("model", "dataset", "method", "density", "seed", "epochs")
LOOKED_AT = (
    "batch_seed", "offset", "allocation", "alpha", "init", "lr", "weight_decay", "schedule", "image_size",
    "train_images", "options",
)  # fmt: skip


def rows_of(runs: Sequence[Run]) -> list[dict[str, object]]:
    """A row for each finished run."""
    configs = [asdict(run.config) for run in runs]
    fields = [*ALWAYS, *(f for f in LOOKED_AT if len({str(config[f]) for config in configs}) > 1)]
    fields += [f for f in ("lr", "schedule", "image_size", "train_images") if f not in fields]
    where = {"commit": commit(), "hardware": processor()}
    return [
        {field: config[field] for field in fields}
        | {"weights_trained": run.weights_trained, "numbers_trained": run.numbers_trained}
        | {"test_accuracy": run.test_accuracy, "train_loss": round(run.records[-1]["train_loss"], 4)}
        | where
        for run, config in zip(runs, configs, strict=True)
        if run.summary is not None
    ]


def collect(folder: Path) -> None:
    """Write the runs of a folder."""
    found = rows_of([run for run in read_runs(folder) if run.summary is not None])
    path = RESULTS / f"worth-{folder.name}.csv"
    write_atomically(path, to_csv(found))
    print(f"{path.relative_to(ROOT)}: {len(found)} runs")


def read(name: str, **wanted: object) -> list[Row]:
    """The rows of a study whose fields are as wanted."""
    with (RESULTS / f"worth-{name}.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if all(_same(row.get(key, ""), value) for key, value in wanted.items())]


def _same(text: str, value: object) -> bool:
    if isinstance(value, int | float) and text:
        return abs(float(text) - value) < 1e-12
    return text == ("" if value is None else str(value))


def cell(rows: Sequence[Row]) -> str:
    """Mean and standard deviation of the accuracy, and how many runs they are of."""
    if not rows:
        return ""
    found = [100 * float(row["test_accuracy"]) for row in rows]
    spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
    return f"{mean(found):.1f}%{spread} ({len(found)})"


def pivot(
    rows: Iterable[Row], down: Callable[[Row], tuple[str, ...]], across: str, heads: Sequence[str]
) -> str:
    """A table of `cell`s: a line for each value of `down`, in the order met, a column for each `across`."""
    cells: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        columns[row[across]] = None
        cells.setdefault(down(row), {}).setdefault(row[across], []).append(row)
    order = sorted(columns, key=float) if across in ("lr", "density") else list(columns)
    lines = [[*names, *(cell(found.get(column, [])) for column in order)] for names, found in cells.items()]
    return table([*heads, *(f"{across} {column}" for column in order)], lines)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        collect(Path(given))
