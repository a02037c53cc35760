"""Sweeps, with real worker processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.faults import outcome, send_after

import dctps
from dctps.benchmarking.trial import timed
from dctps.experiments.run import run
from dctps.experiments.signals import Stopped
from dctps.kernels import variant
from dctps.sweeps.grid import grid
from dctps.sweeps.sweep import look_ahead, run_sweep

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dctps.__file__).parents[1])}
RUNS = grid({"method": ["dctps", "dense"], "seed": [0, 1]}, shared={"epochs": 2, "density": 0.05})
COMMAND = [
    *(sys.executable, "-m", "dctps", "sweep", "method=dctps,dense", "seed=0,1", "epochs=2", "density=0.05"),
    *("--workers", "2"),
]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The outcome of each run, done alone in this process."""
    root = tmp_path_factory.mktemp("alone")
    for name, config in RUNS.items():
        run(config, out=root / name, threads=1)
    return {name: outcome(root / name) for name in RUNS}


def outcomes(root):
    return {name: outcome(root / name) for name in RUNS}


def test_workers_do_what_one_process_does_and_finished_runs_are_left(tmp_path, one_by_one):
    names = list(RUNS)
    first = run_sweep({name: RUNS[name] for name in names[:1]}, tmp_path)
    assert first.finished == names[:1]
    before = (tmp_path / names[0] / "summary.json").stat().st_mtime_ns
    notes = []
    result = run_sweep(RUNS, tmp_path, workers=2, on_note=notes.append)
    assert result.finished == names and not result.failed
    assert len(notes) == 3
    assert (tmp_path / names[0] / "summary.json").stat().st_mtime_ns == before
    assert outcomes(tmp_path) == one_by_one


def test_a_run_that_fails_stops_no_other(tmp_path):
    runs = grid({"lr": [1e30, 1e-3], "epochs": 1, "optimizer": "sgd"})
    bad, good = runs
    result = run_sweep(runs, tmp_path, workers=1)
    assert result.finished == [good]
    assert "loss" in result.failed[bad]
    assert list(run_sweep(runs, tmp_path).failed) == [bad]


def test_a_worker_that_is_killed_loses_nothing(tmp_path, one_by_one):
    killed = []

    def kill_once(line):
        if not killed:
            killed.append(line)
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            for child in children:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    result = run_sweep(RUNS, tmp_path, workers=2, on_note=kill_once)
    assert result.failed and all("signal 9" in message for message in result.failed.values())
    assert sorted([*result.finished, *result.failed]) == sorted(RUNS)
    assert run_sweep(RUNS, tmp_path, workers=2).finished == list(RUNS)
    assert outcomes(tmp_path) == one_by_one


def test_killed_sweeps_go_on(tmp_path, one_by_one):
    """The sweep itself gets the SIGKILL: its workers save and stop, and its next call takes over."""
    draw = random.Random(1)
    finished = {}
    for _ in range(3):
        child = subprocess.Popen([*COMMAND, "--out", tmp_path], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(2.5, 5.0))
        child.kill()
        child.wait()
        for name, stamp in finished.items():
            assert (tmp_path / name / "summary.json").stat().st_mtime_ns == stamp
        summaries = tmp_path.glob("*/summary.json")
        finished = {path.parent.name: path.stat().st_mtime_ns for path in summaries}
    subprocess.run([*COMMAND, "--out", tmp_path], env=ENVIRONMENT, check=True, timeout=120)
    assert outcomes(tmp_path) == one_by_one


def test_a_signal_stops_the_sweep_with_all_runs_saved(tmp_path):
    argv = [word if word != "epochs=2" else "epochs=40" for word in COMMAND]
    with subprocess.Popen(
        [*argv, "--out", tmp_path], env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "stopped" in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("*/summary.json"))


def test_runs_move_between_machines_and_go_on(tmp_path, one_by_one):
    """Folders that were cut short, copied: to a machine like the first, and to one without the kernels."""
    first, like, other = (tmp_path / name for name in ("first", "like/runs", "other/runs"))
    for name, config in RUNS.items():
        handle = send_after(50, signal.SIGINT)  # in the second epoch
        try:
            with pytest.raises(Stopped):
                run(config, out=first / name, threads=1)
        finally:
            handle.remove()
    shutil.copytree(first, like)
    shutil.copytree(first, other)
    shutil.rmtree(first)
    for place, kernels in ((like, "auto"), (other, "off")):
        there = ENVIRONMENT | {"DCTPS_KERNELS": kernels}
        command = [*COMMAND, "--out", place.name]
        done = subprocess.run(
            command, env=there, cwd=place.parent, check=True, timeout=120, capture_output=True
        )
        assert b"4 begun, 0 to begin" in done.stderr
    assert outcomes(like) == one_by_one
    for name, config in RUNS.items():
        summary = json.loads((other / name / "summary.json").read_text())
        assert summary["last_epoch"] == 2
        # A dense network has no use for the kernels, and nothing to note.
        before = [variant()] if config.method == "dctps" and variant() != "off" else []
        assert summary["kernels"] == "off"
        assert [place["kernels"] for place in summary["earlier_environments"]] == before


def test_outlook(tmp_path):
    assert look_ahead(RUNS, tmp_path).seconds is None
    outlook = look_ahead(RUNS, tmp_path, trial=lambda config: 10.0 if config.method == "dense" else 1.0)
    assert (outlook.epochs, outlook.seconds) == (8, 44.0)
    run_sweep({name: RUNS[name] for name in list(RUNS)[:1]}, tmp_path)
    outlook = look_ahead(RUNS, tmp_path, trial=lambda config: 10.0)
    assert (len(outlook.finished), len(outlook.missing), outlook.epochs) == (1, 3, 6)
    assert 40 < outlook.seconds < 80  # the recorded run's epochs, not the trial's, for its method
    assert "4 runs: 1 finished" in str(outlook)
    assert timed(None, "cpu", 1)(next(iter(RUNS.values()))) > 0


def test_one_sweep_waits_for_another(tmp_path, one_by_one):
    """Two sweeps over the same folder share the work: no run is done twice, and both end well."""
    children = [
        subprocess.Popen([*COMMAND, "--out", tmp_path], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        output, _ = child.communicate(timeout=200)
        assert child.returncode == 0
        assert "4 of 4 runs are finished" in output
    assert outcomes(tmp_path) == one_by_one
