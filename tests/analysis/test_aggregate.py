"""Run folders as rows, and their means over seeds, against numpy."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctps.analysis.aggregate import Cell, over_seeds, setting
from dctps.analysis.runs import read_run, read_runs
from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.folder import RunFolderError
from dctps.experiments.run import run


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_mean_and_deviation_are_numpys(values):
    cell = Cell(tuple(values), len(values))
    assert cell.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert cell.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_few_values_say_so():
    assert str(Cell((), 3)) == "missing" and Cell((), 3).missing
    assert str(Cell((0.5,), 1)) == "50.0" and Cell((0.5,), 1).std is None
    assert str(Cell((0.5, 0.7), 3)) == "60.0 ± 14.1 (n=2 of 3)"


def test_a_real_run_is_read_as_it_was_written(tmp_path):
    summary = run(RunConfig(density=0.05, epochs=2, train_images=200), out=tmp_path / "a", threads=1)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    (found,) = read_runs(tmp_path)
    assert found.max_val_accuracy == max(record["val_accuracy"] for record in records)
    assert found.test_accuracy == records[-1]["test_accuracy"] == summary["last_test_accuracy"]
    assert found.weights_trained == round(0.05 * 61470) == summary["report"]["nnz"]
    assert found.numbers_trained == sum(summary["report"]["trainable"].values())
    assert read_runs(tmp_path / "a") == [found]


def test_cells_have_the_seeds_of_a_setting_and_know_who_is_missing(tmp_path, write_run):
    wanted = [resolve(RunConfig(density=d, seed=s)) for d in (0.1, 0.01) for s in (0, 1, 2)]
    for config, accuracy in zip(wanted[:2], (0.3, 0.5), strict=True):
        write_run(tmp_path, config, [0.1, accuracy, 0.2])
    runs = read_runs(tmp_path)
    cells = over_seeds(runs, lambda r: r.max_val_accuracy, wanted, {wanted[2]: "it was too hot"})
    full, empty = cells[setting(wanted[0])], cells[setting(wanted[3])]
    assert full.values == (0.3, 0.5) and full.wanted == 3 and full.note == "it was too hot"
    assert empty.missing and empty.wanted == 3 and empty.note == ""
    assert over_seeds(runs, lambda r: r.test_accuracy)[setting(wanted[0])] == Cell((0.2, 0.2), 2)


def test_epochs_of_imp_before_its_last_level_do_not_count(tmp_path, write_run):
    config = RunConfig(method="imp", levels=1, epochs=2)
    found = read_run(write_run(tmp_path, config, [0.9, 0.8, 0.4, 0.3], levels=[0, 0, 1, 1]))
    assert found.max_val_accuracy == 0.4


def test_unfinished_runs_have_no_accuracy_and_duplicates_count_once(tmp_path, write_run):
    path = write_run(tmp_path / "a", RunConfig(), [0.5])
    write_run(tmp_path / "b", RunConfig(), [0.5])
    (path / "summary.json").unlink()
    (first,) = read_runs(tmp_path / "a")
    assert first.max_val_accuracy is first.test_accuracy is first.weights_trained is None
    (found,) = read_runs(tmp_path / "a", tmp_path / "b")
    assert found.path.parent == tmp_path / "b"


def test_what_cannot_be_read_is_named(tmp_path, write_run):
    with pytest.raises(RunFolderError, match="there is no folder .*nowhere"):
        read_runs(tmp_path / "nowhere")
    path = write_run(tmp_path, RunConfig(), [0.5])
    (path / "metrics.jsonl").write_text('{"epoch": 1, "val_')
    with pytest.raises(RunFolderError, match="metrics.jsonl cannot be read"):
        read_runs(tmp_path)
