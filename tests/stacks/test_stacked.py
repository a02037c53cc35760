"""Sweeps whose runs are trained in stacks, in real worker processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.support.faults import outcome

import dctps
from dctps.data import load_dataset
from dctps.experiments.config import RunConfig, from_dict, resolve, run_name, to_dict
from dctps.experiments.run import evaluate_run, run
from dctps.experiments.session import Session
from dctps.stacks.executors import grouped, stacked, why_not
from dctps.sweeps.events import Job
from dctps.sweeps.grid import grid
from dctps.sweeps.sweep import run_sweep

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dctps.__file__).parents[1])}
SHARED = {"epochs": 2, "batch_seed": 0, "model": "lenet5"}
RUNS = grid(
    {"method": ["dctps", "snip", "hyperplane"], "density": 0.02, "seed": [0, 1]},
    {"method": "dense"},
    {"method": "rigl", "density": 0.05, "update_interval": 10},
    {"method": "random-epl", "density": 0.02, "init": "fan-in", "seed": 1},
    {"method": "sdctps", "density": 0, "seed": 1},
    shared=SHARED,
)


@pytest.fixture(scope="module")
def in_stacks(tmp_path_factory):
    """The runs in stacks of up to eight, and how the sweep ended."""
    out = tmp_path_factory.mktemp("stacks")
    return out, run_sweep(RUNS, out, executor=stacked(8))


def outcomes(root, names=RUNS):
    return {name: outcome(root / name) for name in names}


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_folders_are_those_of_separate_runs(in_stacks, tmp_path):
    out, result = in_stacks
    assert result.finished == list(RUNS) and not result.failed
    for name in [name for name in RUNS if "seed1" in name or "rigl" in name]:
        run(RUNS[name], out=tmp_path / name, threads=1)
        assert {f.name for f in (tmp_path / name).iterdir()} == {f.name for f in (out / name).iterdir()}
        for file in ("config.json", "data.json"):
            assert (tmp_path / name / file).read_bytes() == (out / name / file).read_bytes()
        for alone, together in zip(records(tmp_path / name), records(out / name), strict=True):
            assert alone.keys() == together.keys()
            assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
            assert together["lr"] == alone["lr"]
            assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.03)


def test_saved_networks_are_those_that_were_measured(in_stacks):
    out, _ = in_stacks
    for name in list(RUNS)[::3]:
        summary = json.loads((out / name / "summary.json").read_text())
        found = evaluate_run(out / name, threads=1)
        assert found["last"].accuracy == pytest.approx(summary["last_test_accuracy"], abs=0.003)
        assert found["best"].accuracy == pytest.approx(summary["best_test_accuracy"], abs=0.003)


def test_stopped_stacks_go_on_bit_for_bit(in_stacks, tmp_path):
    """Stopped twice, in the middle of epochs; the second time the workers' sweep is killed."""
    command = [sys.executable, "-m", "dctps", "sweep", "--file", tmp_path / "runs.toml", "--stack", "8"]
    lines = [f"{name} = {json.dumps(value)}" for name, value in SHARED.items()]
    lines += [
        "[[runs]]",
        'method = ["dctps", "snip", "hyperplane"]',
        "density = 0.02",
        "seed = [0, 1]",
    ]
    (tmp_path / "runs.toml").write_text("\n".join(lines))
    names = [name for name in RUNS if any(m in name for m in ("-dctps", "snip", "hyperplane"))]
    out = tmp_path / "runs"
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            [*command, "--out", out], env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as child:
            deadline = time.monotonic() + 100
            before = set(out.glob("*/state.safetensors"))
            while set(out.glob("*/state.safetensors")) <= before and child.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child.send_signal(number)
        time.sleep(2)
    subprocess.run([*command, "--out", out], env=ENVIRONMENT, check=True, timeout=120)
    assert outcomes(out, names) == outcomes(in_stacks[0], names)


def test_a_run_that_fails_leaves_the_stack(tmp_path):
    runs = grid({"lr": [1e30, 1e-3, 1e-2], "epochs": 2, "optimizer": "sgd", "model": "lenet5"})
    bad, *good = runs
    result = run_sweep(runs, tmp_path, executor=stacked(3))
    assert result.finished == good
    assert "NonFiniteLoss" in result.failed[bad]
    again = tmp_path / "again"
    run_sweep({name: runs[name] for name in good}, again, executor=stacked(3))
    assert outcomes(again, good) == outcomes(tmp_path, good)


def test_groups_are_of_runs_that_can_be_one_stack(tmp_path):
    runs = grid(
        {"method": ["dctps", "hyperplane"], "seed": [0, 1, 2, 3], "batch_seed": [None, 5]},
        {"method": "imp", "seed": [0, 1], "batch_seed": 5},
        {"model": "vgg11"},
        shared={"epochs": 1},
    )
    jobs = [Job(name, config, tmp_path, {}) for name, config in runs.items()]
    groups = grouped(jobs, 3)
    assert sorted(job.name for group in groups for job in group) == sorted(runs)
    for group in groups:
        seeds = {job.config.seed if job.config.batch_seed is None else job.config.batch_seed for job in group}
        assert len(group) <= 3 and len(seeds) == 1
        assert len(group) == 1 or all(job.config.method != "imp" for job in group)
    assert sum(len(group) > 1 for group in groups) == 7
    many = [
        Job(name, config, tmp_path, {})
        for name, config in grid({"seed": list(range(10)), "batch_seed": 1}).items()
    ]
    assert sorted(len(group) for group in grouped(many, 16, workers=2)) == [5, 5]


def test_the_batch_seed_decides_the_batches_alone():
    """And a configuration from before there was one is the run that it was."""
    dataset, place = load_dataset("digits"), torch.device("cpu")

    def first(**fields):
        torch.manual_seed(0)
        session = Session(resolve(RunConfig(augment=True, **fields)), dataset, place)
        return next(session.training_batches(lambda: None))[0], session.model

    (of_seed, _), (same, other), (different, _) = (
        first(seed=3),
        first(seed=4, batch_seed=3),
        first(seed=3, batch_seed=4),
    )
    assert torch.equal(of_seed, same) and not torch.equal(of_seed, different)
    support = other.get_buffer("classifier.1.support")
    assert torch.equal(support, first(seed=4)[1].get_buffer("classifier.1.support"))
    assert run_name(RunConfig(seed=4, batch_seed=3)) == "lenet5-digits-dctps-0.01-seed4-batchseed3"
    older = {name: value for name, value in to_dict(RunConfig()).items() if name != "batch_seed"}
    assert from_dict(older) == RunConfig() and run_name(RunConfig()) == "lenet5-digits-dctps-0.01-seed0"


def test_what_cannot_be_stacked_says_why():
    assert why_not(RunConfig()) is None
    assert "BatchNorm2d" in why_not(RunConfig(model="vgg11"))
    assert "mixup" in why_not(RunConfig(mixup=1.0))
    assert why_not(RunConfig(method="rigl")) is None
    assert "imp" in why_not(RunConfig(method="imp"))
    with pytest.raises(ValueError, match="at least 1"):
        stacked(0)
