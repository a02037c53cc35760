"""`torchrun -m dctps train`: the run of one process, written by one, resumed by all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dctps.experiments.config import RunConfig
from dctps.experiments.run import run

CONFIG = {"dataset": "digits", "density": 0.05, "batch_size": 65, "seed": 3, "augment": True}


def torchrun(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, "-m", "dctps", "train", "--device", "cpu", "--threads", "1", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def started(*flags: str) -> subprocess.Popen[str]:
    """The same, without waiting for its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.Popen(
        [*command, "-m", "dctps", "train", "--device", "cpu", "--threads", "1", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def family(pid: int) -> list[int]:
    """A process and all that descend from it; torchrun gives each worker a session of its own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may have ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def flags_of(config: dict[str, object]) -> list[str]:
    flags = []
    for name, value in config.items():
        flag = name.replace("_", "-")
        flags += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return flags


def test_two_processes_are_one_run_and_write_once(tmp_path: Path) -> None:
    """Batches of 65 do not divide evenly; the last one of an epoch is smaller still."""
    alone = run(RunConfig(**CONFIG, epochs=2), out=tmp_path / "one", device="cpu", threads=1)
    done = torchrun(*flags_of(CONFIG), "--epochs", "2", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n    2  ") == 1
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.01)
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["processes"] == 2 and alone["processes"] == 1 and two["last_epoch"] == 2


@pytest.mark.parametrize("method", ["dctps-rigl", "dsr"])
def test_supports_that_change_are_those_of_one_process(tmp_path: Path, method: str) -> None:
    choices = {**CONFIG, "method": method, "update_interval": 5, "drop_fraction": 0.2}
    alone = run(RunConfig(**choices, epochs=1), out=tmp_path / "one", device="cpu", threads=1)
    done = torchrun(*flags_of(choices), "--epochs", "1", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["report"]["nnz"] == alone["report"]["nnz"]
    assert [row["nnz"] for row in two["report"]["rows"]] == [row["nnz"] for row in alone["report"]["rows"]]
    lines = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two")]
    assert lines[0]["train_loss"] == pytest.approx(lines[1]["train_loss"], rel=1e-2)


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = torchrun(
        "--dataset", "cifar10", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "x")
    )
    assert done.returncode != 0
    assert done.stderr.count("dctps: error:") == 1
    assert not (tmp_path / "x").exists()


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    flags = [*flags_of(CONFIG), "--epochs", "3", "--checkpoint-interval", "5"]
    whole = torchrun(*flags, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killed = started(*flags, "--out", str(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in family(killed.pid):
        os.kill(pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    again = torchrun(*flags, "--out", str(tmp_path / "killed"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continues" in again.stdout + again.stderr
    runs = []
    for name in ("whole", "killed"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        runs.append([{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines])
    assert runs[0] == runs[1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_levels_of_imp_by_two_processes(tmp_path):
    config = {"method": "imp", "levels": 1, "rewind_epoch": 1, "epochs": 2, "train_images": 200, **CONFIG}
    done = torchrun(*flags_of(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [level["nnz"] for level in summary["imp"]["levels"]] == [None, summary["report"]["nnz"]]
    assert (summary["imp"]["epochs_trained"], summary["processes"]) == (3, 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    alone = run(RunConfig(**config), out=tmp_path / "alone", threads=1)  # type: ignore[arg-type]
    assert alone["imp"]["levels"][0]["test_accuracy"] == pytest.approx(
        summary["imp"]["levels"][0]["test_accuracy"], abs=0.05
    )
