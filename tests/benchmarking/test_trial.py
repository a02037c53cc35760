"""What `--preview` says an epoch takes, beside what it takes: by the CPU's clock, as machines are busy."""

import time
from dataclasses import replace
from functools import partial

import pytest

from dctps.benchmarking import trial
from dctps.benchmarking.trial import time_epoch, timed
from dctps.experiments import RunConfig
from dctps.experiments.config import resolve
from dctps.experiments.folder import RunFolder
from dctps.experiments.run import run
from dctps.stacks.executors import grouped
from dctps.stacks.stacked_runs import run_stacked
from dctps.sweeps.events import Job
from dctps.sweeps.grid import grid
from dctps.sweeps.sweep import look_ahead

PLACE = {"data_dir": None, "device": "cpu", "threads": 1}
QUICK = RunConfig(epochs=2, density=0.05)


@pytest.fixture
def cpu_clock(monkeypatch):
    """The trial measures seconds of this process's CPU, of which it has one thread."""
    monkeypatch.setattr(trial.time, "perf_counter", time.process_time)
    return time.process_time


@pytest.mark.parametrize(
    "config",
    [
        QUICK,
        replace(QUICK, method="dense"),
        replace(QUICK, method="sdctps", batch_size=64, augment=True),
        # A quarter of the pixels, which the trial once did not know of, and an evaluation of all images.
        replace(QUICK, model="resnet20", image_size=16, batch_size=64, train_images=320, density=0.02),
        replace(QUICK, method="snip", train_images=640),
        replace(QUICK, eval_images=16, train_images=320),
    ],
    ids=["lenet5", "dense", "sdctps", "small images", "snip", "few images"],
)
def test_an_epoch_takes_as_long_as_was_said(tmp_path, cpu_clock, config):
    config = resolve(config)
    marks = []
    run(config, out=tmp_path / "run", on_epoch=lambda record: marks.append(cpu_clock()), **PLACE)
    took = marks[1] - marks[0]
    said = time_epoch(config, **PLACE)
    assert took / 4 < said < 4 * took  # `dctps sweep --preview` is checked within 2 where nothing else runs


def test_a_stack_takes_as_long_as_was_said(tmp_path, cpu_clock):
    shared = {"epochs": 2, "density": [0.1, 0.01], "batch_seed": 0}
    runs = grid({"method": ["dctps", "random-epl", "snip", "sdctps"], "seed": [0, 1]}, shared=shared)
    jobs = [Job(name, config, tmp_path / name, PLACE) for name, config in runs.items()]
    marks = []
    for _name, event in run_stacked(jobs):
        if not hasattr(event, "summary"):
            marks.append(cpu_clock())
    took = marks[2 * len(jobs) - 1] - marks[len(jobs) - 1]
    said = time_epoch(*runs.values(), **PLACE)
    assert took / 4 < said < 4 * took  # `dctps sweep --preview` is checked within 2 where nothing else runs
    # One after the other they take several times as long, and the outlook knows.
    kinds = [timed(None, "cpu", 1) for _ in range(2)]
    stacked = look_ahead(
        runs, tmp_path / "none", trial=kinds[0], split=partial(grouped, size=len(runs))
    ).seconds
    alone = look_ahead(runs, tmp_path / "none", trial=kinds[1]).seconds
    assert stacked < 2 * 4 * took and alone > 1.5 * stacked


def test_what_an_epoch_depends_on_is_tried_each_and_nothing_twice(tmp_path):
    tried = []

    def count(*configs):
        tried.append(configs)
        return float(len(configs))

    runs = grid({"method": ["random-epl", "snip", "dctps"], "seed": [0, 1, 2], "lr": [0.1, 0.2]})
    outlook = look_ahead(runs, tmp_path, trial=count)
    assert len(tried) == 2 and outlook.seconds == 20.0 * len(runs)  # the offset decides, not what was scored
    tried.clear()
    sizes = grid(
        {"image_size": [16, 32], "density": [0.1, 0.01], "train_images": [64, 128]},
        shared={"model": "resnet20"},
    )
    look_ahead(sizes, tmp_path, trial=count)
    assert len(tried) == 8
    tried.clear()
    assert look_ahead(runs, tmp_path, trial=count, split=partial(grouped, size=9)).seconds == 20.0 * len(runs)
    assert all(1 < len(configs) <= 9 for configs in tried)


def test_imp_is_tried_at_its_dense_network(tmp_path):
    config = resolve(replace(QUICK, method="imp", train_images=160, epochs=1))
    assert time_epoch(config, **PLACE) > 0
    assert RunFolder(tmp_path / "run", config).finished() is None
