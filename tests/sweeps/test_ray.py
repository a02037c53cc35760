"""Sweeps on a real Ray instance of this machine."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import groupby
from pathlib import Path

import pytest
from tests.support.faults import outcome

import dctps
from dctps.cli import main
from dctps.experiments.folder import RunFolder
from dctps.experiments.run import run
from dctps.experiments.signals import Stopped, sigterm_raises
from dctps.stacks import on_ray, stacked
from dctps.sweeps.events import Epoch, Finished, Job
from dctps.sweeps.grid import grid
from dctps.sweeps.ray import needs
from dctps.sweeps.sweep import run_sweep

ray = pytest.importorskip("ray")
RUNS = grid({"method": ["dctps", "dense"], "seed": [0, 1]}, shared={"epochs": 2, "density": 0.05})


@pytest.fixture(scope="module", autouse=True)
def instance():
    """Two CPUs, and the name of a GPU, which is all that dealing it out needs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the runs, done one by one in this process."""
    root = tmp_path_factory.mktemp("alone")
    for name, config in RUNS.items():
        run(config, out=root / name, threads=1)
    return root


@pytest.fixture(scope="module")
def one_by_one(alone):
    return outcomes(alone)


def outcomes(root):
    return {name: outcome(root / name) for name in RUNS}


def timeless(path):
    """A file's bytes without the times in them."""
    return re.sub(rb'"seconds": [0-9.e-]+', b"", path.read_bytes())


def test_two_ray_workers_do_what_one_process_does(tmp_path, alone, one_by_one):
    notes = []
    result = run_sweep(RUNS, tmp_path, workers=2, device="cpu", executor=on_ray(), on_note=notes.append)
    assert result.finished == list(RUNS) and not result.failed
    assert len(notes) == 4 and "test accuracy" in notes[0]
    assert outcomes(tmp_path) == one_by_one
    for name in RUNS:
        assert timeless(tmp_path / name / "metrics.jsonl") == timeless(alone / name / "metrics.jsonl")


def test_stacks_are_the_same_on_ray(tmp_path):
    runs = grid(
        {"method": ["dctps", "dense"], "seed": [0, 1], "batch_seed": 0}, shared={"epochs": 1, "density": 0.05}
    )
    assert run_sweep(runs, tmp_path / "here", workers=2, executor=stacked(4)).finished == list(runs)
    executor = on_ray(stack=4)
    assert run_sweep(runs, tmp_path / "ray", workers=2, device="cpu", executor=executor).finished == list(
        runs
    )
    for name in runs:
        assert outcome(tmp_path / "ray" / name) == outcome(tmp_path / "here" / name)


def test_a_run_that_fails_stops_no_other(tmp_path):
    bad, good = runs = grid({"lr": [1e30, 1e-3], "epochs": 1, "optimizer": "sgd"})
    result = run_sweep(runs, tmp_path, executor=on_ray())
    assert result.finished == [good]
    assert "loss" in result.failed[bad] and "Traceback" not in result.failed[bad]


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def workers_of_ray():
    """Process numbers of this process's workers that are at a task; other test processes have theirs."""
    busy = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::lenet5-digits"):
                busy += [int(entry.name)] if parent(parent(entry.name)) == os.getpid() else []
        except OSError:
            continue
    return busy


def test_a_worker_that_is_killed_loses_nothing(tmp_path, one_by_one):
    def kill_one():
        while not (busy := workers_of_ray()):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGKILL)

    # As soon as one has begun: when a run ends, the others may be between two.
    threading.Thread(target=kill_one, daemon=True).start()
    result = run_sweep(RUNS, tmp_path, workers=2, device="cpu", executor=on_ray())
    (message,) = result.failed.values()
    assert "worker" in message and "goes on where it was last saved" in message
    assert sorted([*result.finished, *result.failed]) == sorted(RUNS)
    assert run_sweep(RUNS, tmp_path, workers=2, device="cpu", executor=on_ray()).finished == list(RUNS)
    assert outcomes(tmp_path) == one_by_one


def jobs(runs, out, **place):
    return [Job(name, config, out / name, {"threads": 1} | place) for name, config in runs.items()]


def where(name, config, root):
    """Where a run goes on, in words; it does not."""
    notes = []

    def note(line):
        notes.append(line)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(config, out=root / name, threads=1, on_note=note)
    return notes[0]


def test_stopping_saves_the_runs_in_the_middle_of_an_epoch(tmp_path):
    runs = grid({"seed": [0, 1]}, shared={"epochs": 300, "density": 0.05, "batch_size": 8})
    for _ in range(10):  # a signal may happen to come between two epochs
        events, seen = on_ray()(jobs(runs, tmp_path, device="cpu"), 2), set()
        while len(seen) < 2:
            name, event = next(events)
            assert isinstance(event, Epoch)
            seen.add(name)
        events.close()
        assert not workers_of_ray()
        if any("after step" in where(name, config, tmp_path) for name, config in runs.items()):
            return
    raise AssertionError("the runs were killed, not stopped: only what they had saved before is there")


def test_a_run_that_another_process_holds_comes_last(tmp_path, one_by_one):
    names = list(RUNS)
    folder = tmp_path / names[0]
    events = on_ray()(jobs(RUNS, tmp_path, device="cpu"), 1)
    with RunFolder(folder, RUNS[names[0]]).writing():
        ends = [next(events)[0] for _ in range(2)]
    ends += [name for name, event in events if isinstance(event, Finished)]
    assert ends[0] == names[0] and ends[-1] == names[0]
    assert outcomes(tmp_path) == one_by_one


def test_runs_have_a_gpu_to_themselves_or_share_it(tmp_path):
    """The instance's GPU is a name, so that the runs are on the CPU; what Ray deals out is the same."""
    runs = grid({"seed": [0, 1]}, shared={"epochs": 3, "density": 0.05})
    alone = [name for name, _ in on_ray()(jobs(runs, tmp_path, device="auto"), 2)]
    assert len(alone) == 8 and len(list(groupby(alone))) == 2

    runs = grid({"seed": [0, 1]}, shared={"epochs": 300, "density": 0.05})
    events = on_ray(runs_per_gpu=2)(jobs(runs, tmp_path, device="auto"), 2)
    shared = set()
    while len(shared) < 2:
        name, event = next(events)
        assert isinstance(event, Epoch)
        shared.add(name)
    events.close()


def test_what_a_run_asks_for(tmp_path):
    (job,) = jobs(grid({"seed": 0}), tmp_path, device="auto")
    assert needs(job, gpus=0, runs_per_gpu=4) == {"num_cpus": 1}
    assert needs(job, gpus=8, runs_per_gpu=4) == {"num_cpus": 1, "num_gpus": 0.25}
    (job,) = jobs(grid({"seed": 0}), tmp_path, device="cuda", threads=3)
    assert needs(job, gpus=0, runs_per_gpu=1) == {"num_cpus": 3, "num_gpus": 1}
    with pytest.raises(ValueError, match="needs 3 CPU and 1 GPU, and Ray has 2 CPU and 1 GPU"):
        list(on_ray()([job], 1))
    (job,) = jobs(grid({"seed": 0}), tmp_path, device="cuda:1")
    with pytest.raises(ValueError, match="give cuda"):
        needs(job, gpus=2, runs_per_gpu=1)
    with pytest.raises(ValueError, match="got 0"):
        on_ray(runs_per_gpu=0)


def test_flags_that_cannot_be(monkeypatch, tmp_path, capsys):
    argv = ["sweep", "epochs=1", "--out", str(tmp_path)]
    assert main([*argv, "--runs-per-gpu", "2"]) == 2
    assert "add --ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*argv, "--ray", "local"]) == 2
    assert "pip install dctps[ray]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sigterm_is_told_from_ctrl_c_where_ray_puts_another_exception_in_its_place():
    @ray.remote
    def wait():
        time.sleep(5)

    with pytest.raises(Stopped) as caught, sigterm_raises("stopped"):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        ray.wait([wait.remote()])
    assert caught.value.status == 143


def test_the_command_joins_a_cluster_and_a_signal_stops_it(instance, tmp_path, one_by_one):
    argv = [sys.executable, "-m", "dctps", "sweep", "--ray", instance, "--workers", "2", "--device", "cpu"]
    argv += ["--tensorboard", "--out", "runs", "method=dctps,dense", "seed=0,1", "density=0.05"]
    environment = os.environ | {"PYTHONPATH": str(Path(dctps.__file__).parents[1])}  # Ray has added to it
    pipes = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    # Ctrl-C goes to all processes of a terminal, so of this session.
    with subprocess.Popen([*argv, "epochs=300"], **pipes, start_new_session=True) as child:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/*/metrics.jsonl")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "stopped" in errors and "Traceback" not in errors
    assert not workers_of_ray()
    assert not list(tmp_path.glob("runs/*/summary.json"))

    done = subprocess.run([*argv, "epochs=2"], **pipes, check=True, timeout=300)
    assert "4 of 4 runs are finished in runs" in done.stdout
    found = outcomes(tmp_path / "runs")
    assert all(files.pop("events.out.tfevents.0.dctps") for files in found.values())
    assert found == one_by_one
