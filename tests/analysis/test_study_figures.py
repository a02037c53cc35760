"""Figures 2 and 3 and Table 1 of docs/figures.md, drawn from the files of the studies."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dctps.analysis.figure_runs import runs_of_figure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import study_figures

    return study_figures


@pytest.mark.parametrize("figure", ["2", "3"])
def test_every_run_of_a_reduced_figure_is_in_a_study(study_figures, figure, tmp_path):
    wanted = runs_of_figure(figure, "reduced").trained
    found = study_figures.runs_from_studies(wanted, tmp_path)
    assert {run.config for run in found} == set(wanted.values())


@pytest.mark.parametrize("name", ["figure2", "figure3", "table1"])
def test_the_files_are_of_the_studies(study_figures, name):
    """A point's mean is that of the rows of its network, method, density and seeds."""
    figure = name.removeprefix("figure")
    wanted = runs_of_figure(figure, "reduced").trained
    runs = study_figures.runs_from_studies(wanted, Path("none"))
    with (BENCHMARKS / "results" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["n"]) for row in rows) == len(runs)
    for row in rows:
        method, _, _ = row["method"].partition(" ")
        own = [
            run.test_accuracy
            for run in runs
            if (run.config.model, run.config.method) == (row["model"], method)
            and run.config.density == (float(row["density"]) if row["density"] else None)
        ]
        mean = float(row["mean" if "mean" in row else "test_accuracy_mean"])
        assert mean == pytest.approx(sum(own) / len(own), abs=1e-6)
