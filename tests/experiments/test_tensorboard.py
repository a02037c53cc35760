"""Events, read back by TensorBoard itself."""

import json
import sys
from dataclasses import replace

import pytest
from tests.support.faults import TINY, train_tiny

from dctps.cli import main
from dctps.experiments.tensorboard import EVENTS, write_events
from dctps.sweeps.grid import grid
from dctps.sweeps.sweep import run_sweep

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
LONG = replace(TINY, epochs=4)


def scalars(folder):
    """By name, each step's value as TensorBoard has it."""
    shown = accumulator.EventAccumulator(str(folder))
    shown.Reload()
    return {
        name: [(event.step, event.value) for event in shown.Scalars(name)] for name in shown.Tags()["scalars"]
    }


def assert_agrees(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = scalars(folder)
    assert {"train_loss", "val_accuracy", "test_accuracy", "lr", "seconds"} <= set(found)
    for name, shown in found.items():
        told = [(record["epoch"], record[name]) for record in records if record[name] is not None]
        assert [epoch for epoch, _ in shown] == [epoch for epoch, _ in told]
        assert [value for _, value in shown] == pytest.approx([value for _, value in told], rel=1e-6)


class Kill(BaseException):
    pass


def test_events_follow_the_metrics_over_a_stop_and_a_copy(tmp_path):
    def follow(record):
        write_events(tmp_path)
        assert_agrees(tmp_path)
        if record["epoch"] == 3:
            raise Kill

    with pytest.raises(Kill):
        train_tiny(tmp_path, LONG, on_epoch=follow)
    begun = (tmp_path / EVENTS).read_bytes()
    file = (tmp_path / EVENTS).stat().st_ino
    train_tiny(tmp_path, LONG, on_epoch=follow)
    assert_agrees(tmp_path)
    whole = (tmp_path / EVENTS).read_bytes()
    assert whole.startswith(begun) and len(whole) > len(begun)
    assert (tmp_path / EVENTS).stat().st_ino == file  # TensorBoard may have it open
    for there in (whole[:-5], whole + b"more", b"other", b""):
        (tmp_path / EVENTS).write_bytes(there)
        write_events(tmp_path)
        assert (tmp_path / EVENTS).read_bytes() == whole


def test_a_run_without_epochs_has_no_events(tmp_path):
    write_events(tmp_path)
    write_events(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_levels_are_one_series(tmp_path):
    train_tiny(tmp_path, replace(TINY, method="imp", levels=2, epochs=1))
    write_events(tmp_path)
    assert_agrees(tmp_path)
    assert "level" in scalars(tmp_path)


def test_a_sweep_writes_those_of_finished_runs_too(tmp_path):
    runs = grid({"seed": [0, 1]}, shared={"epochs": 1, "density": 0.05})
    run_sweep(dict(list(runs.items())[:1]), tmp_path)
    assert not list(tmp_path.glob(f"*/{EVENTS}"))
    assert run_sweep(runs, tmp_path, tensorboard=True).finished == list(runs)
    for name in runs:
        assert_agrees(tmp_path / name)


def test_the_flag_of_train(tmp_path, monkeypatch, capsys):
    argv = ["train", "--epochs", "1", "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    assert not (tmp_path / "run" / EVENTS).exists()
    assert main([*argv, "--tensorboard"]) == 0  # finished: it only gets its events
    assert_agrees(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    assert main([*argv[:-1], str(tmp_path / "other"), "--tensorboard"]) == 2
    assert "pip install dctps[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
