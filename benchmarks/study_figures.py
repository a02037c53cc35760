"""Figures 2 and 3 and Table 1, reduced, from the studies' files instead of folders of runs.

    python benchmarks/study_figures.py runs [2 3 table1]

The runs of `dctps figure 2 --scale reduced` and of figure 3 are runs of the studies (`worth.py`), whose
accuracies are in benchmarks/results/worth-*.csv. Table 1's costs are measured, in the folder that is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import worth

from dctps.analysis.figure_runs import for_all, runs_of_figure
from dctps.analysis.figures import draw_figure
from dctps.analysis.runs import Run
from dctps.benchmarking.costs import measure_cost
from dctps.benchmarking.record import commit
from dctps.files import write_atomically
from dctps.sweeps.grid import Runs

FROM_STUDIES = "2", "3", "table1"


def runs_from_studies(wanted: Runs, folder: Path) -> list[Run]:
    """Those of the runs that a study has trained, as if each had a folder of its name in `folder`."""
    names = {worth.key_of_config(config): name for name, config in wanted.items()}
    rows = (row for study in worth.STUDIES for row in worth.read(study))
    found = {names[key]: row for row in rows if (key := worth.key_of(row)) in names}
    return [Run(folder / name, wanted[name], [], _summary(row)) for name, row in found.items()]


def _summary(row: worth.Row) -> dict[str, object]:
    weights, numbers = int(row["weights_trained"]), int(row["numbers_trained"])
    trainable = {"values": weights, "others": numbers - weights}
    accuracy = float(row["test_accuracy"])
    return {"last_test_accuracy": accuracy, "report": {"trainable": trainable}, "hardware": row["hardware"]}


def draw(figures: Iterable[str], folder: Path) -> None:
    """Write the figures into benchmarks/results/, with what made them."""
    for figure in figures:
        wanted = runs_of_figure(figure, "reduced")
        # seeds cost alike
        costed = {name: config for name, config in wanted.costed.items() if config.seed == 0}
        failed = for_all(measure_cost, costed, folder, print, threads=1)
        runs = runs_from_studies(wanted.runs, folder)
        for file in draw_figure(figure, runs, list(wanted.runs.values()), {}, worth.RESULTS):
            if file.suffix == ".pdf":  # which no page shows
                file.unlink()
        made = {
            "command": f"dctps figure {figure} --scale reduced",
            "commit": commit(),
            "hardware": "; ".join(sorted({run.summary["hardware"] for run in runs if run.summary})),
            "runs": len(wanted.trained),
            "finished": len(runs),
            "examined": 0,
            "without_costs": failed,
        }
        stem = figure if figure.startswith("table") else f"figure{figure}"
        write_atomically(worth.RESULTS / f"{stem}.json", (json.dumps(made, indent=1) + "\n").encode())


if __name__ == "__main__":
    draw(sys.argv[2:] or FROM_STUDIES, Path(sys.argv[1]))
