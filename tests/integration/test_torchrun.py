"""`torchrun -m dctps train`: the run of one process, written by one, resumed by all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dctps.experiments.config import RunConfig
from dctps.experiments.run import run

CONFIG = {"dataset": "digits", "density": 0.05, "batch_size": 65, "seed": 3, "validation_size": 0.1}


def torchrun(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, "-m", "dctps", "train", "--device", "cpu", "--threads", "1", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def flags_of(config: dict[str, object]) -> list[str]:
    return [part for name, value in config.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_two_processes_are_one_run_and_write_once(tmp_path: Path) -> None:
    """Batches of 65 do not divide evenly; the last one of an epoch is smaller still."""
    alone = run(RunConfig(**CONFIG, epochs=2), out=tmp_path / "one", device="cpu", threads=1)
    done = torchrun(*flags_of(CONFIG), "--epochs", "2", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   2") == 1
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.01)
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["processes"] == 2 and alone["processes"] == 1 and two["last_epoch"] == 2


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = torchrun(
        "--dataset", "cifar10", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "x")
    )
    assert done.returncode != 0
    assert done.stderr.count("dctps: error:") == 1
    assert not (tmp_path / "x").exists()
