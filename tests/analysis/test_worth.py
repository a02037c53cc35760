"""The studies of docs/worth.md: a file's rows are runs that its commands train."""

from __future__ import annotations

from pathlib import Path

import pytest

from dctps.experiments.config import resolve
from dctps.sweeps.grid import grid, read_tables

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


STUDIES = ["lenet", "vgg19-16", "vgg19-32", "resnet20", "deeper", "cifar100", "few", "thin", "tried"]


@pytest.mark.parametrize("study", STUDIES)
def test_each_row_is_a_run_of_the_studys_files(monkeypatch, study):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import worth

    folder = BENCHMARKS / "worth"
    runs = set()
    for path in (folder / f"{study}.toml", *folder.glob(f"{study}-*.toml")):
        shared, tables = read_tables(path)
        for config in map(resolve, grid(*tables, shared=shared).values()):
            runs.add(worth.key_of_config(config))
    rows = worth.read(study)
    assert sorted(worth.STUDIES) == sorted(STUDIES)
    assert rows and [row for row in rows if worth.key_of(row) not in runs] == []
