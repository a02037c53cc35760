"""The command as a user starts it: a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.support.faults import outcome

import dctps
from dctps.cli import program
from dctps.kernels import runnable_variants, variant

DCTPS = [sys.executable, "-m", "dctps"]
# One thread each: two test workers share few cores.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dctps.__file__).parents[1])}


def command(*argv, cwd):
    return subprocess.run(
        [*DCTPS, *argv], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["train", "--help"], ["evaluate", "--help"], ["report", "--help"], ["recipes", "--help"]],
)
def test_help_does_not_import_torch(tmp_path, argv):
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dctps", *argv],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert traced.stdout.startswith("usage: dctps")
    modules = {line.split("|")[-1].strip() for line in traced.stderr.splitlines()}
    assert "tyro" in modules
    assert not modules & {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize(
    "line",
    ["--help", "train --help", "recipes", "report", "evaluate run", "train --epochs 1 --out run"],
)
def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path, line):
    if "run" in line:
        assert command("train", "--epochs", "1", "--out", "run", cwd=tmp_path).returncode == 0
    argv, pipe = [*DCTPS, *line.split()], subprocess.PIPE
    with subprocess.Popen(argv, cwd=tmp_path, env=ENVIRONMENT, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=120) == 141
    assert err == b""


COMMANDS = ["", *program._KINDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_wide_as_a_terminal(tmp_path, name):
    done = command(*name.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: dctps") and max(map(len, lines)) <= 80
    if not name:
        assert all(any(other in line for line in lines) for other in program._KINDS)


def test_help_is_there_at_once(tmp_path):
    """In time of the processor, which other processes do not lengthen; with torch it would be two seconds."""
    assert min(_seconds([*DCTPS, "--help"]) for _ in range(3)) < 0.3
    assert min(_seconds([sys.executable, "-c", "import dctps"]) for _ in range(3)) < 0.1


def _seconds(argv):
    before = os.times()
    subprocess.run(argv, env=ENVIRONMENT, capture_output=True, check=True, timeout=60)
    after = os.times()
    return sum(after[i] - before[i] for i in (2, 3))


def test_without_arguments_one_sees_the_commands_that_one_needs(tmp_path):
    done = command(cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    shown = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  dctps ")]
    assert shown == ["train", "sweep", "report", "predict"] and set(shown) <= set(program._KINDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "changed",
    [{}, {"DCTPS_DATA": "here", "DCTPS_KERNELS": "off"}, {"DCTPS_DATA": "no", "DCTPS_KERNELS": "mmx"}],
)
def test_the_doctor_says_what_there_is_and_what_is_missing(tmp_path, changed):
    (tmp_path / "here" / "cifar-10-batches-py").mkdir(parents=True)
    done = subprocess.run(
        [*DCTPS, "doctor"], cwd=tmp_path, env=ENVIRONMENT | changed,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert found["torch"] == torch.__version__ and found["dctps"].startswith(dctps.__version__)
    assert "tensorboard" in found and "dev" not in found
    if changed.get("DCTPS_KERNELS") == "off":
        assert found["data"] == "here, with cifar10"
        assert found["kernels"].startswith("off, as DCTPS_KERNELS says")
    elif changed:
        assert "no cannot be read" in found["data"] and found["kernels"].startswith("off: ")
    elif runnable_variants():
        assert found["kernels"].startswith(f"{variant()}, compiled")


def test_shells_complete_the_commands(tmp_path):
    script = command("--tyro-print-completion", "bash", cwd=tmp_path).stdout
    assert all(name in script for name in program._KINDS) and "--density" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


WITHOUT_KERNELS = """
import pathlib, sys
from dctps.kernels import loader
loader.LIBRARY = pathlib.Path("nowhere.so")
from dctps.cli import main
sys.exit(main())
"""


def test_missing_kernels_are_one_line_with_the_remedy(tmp_path):
    words = "train --epochs 1 --density 0.05 --train-images 64 --eval-images 50 --threads 1 --out run"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS, *words.split()], cwd=tmp_path,
        env={name: value for name, value in ENVIRONMENT.items() if name != "DCTPS_KERNELS"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert re.fullmatch(
        r"dctps: the native kernels were not compiled .*; slower torch operations serve: .*"
        r"run `python -m dctps.kernels`, or set DCTPS_KERNELS=off to accept it\n", done.stderr,
    )  # fmt: skip


def test_the_version(tmp_path):
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"dctps {dctps.__version__}\n")


def test_a_run_goes_to_a_folder_of_its_own_name(tmp_path):
    done = command("train", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "runs" / "lenet5-digits-dctps-0.01-seed0-epochs1" / "summary.json").is_file()


@pytest.mark.parametrize("flags", [["--density", "2"], ["--dataset", "cifar10", "--data-dir", "nowhere"]])
def test_a_mistake_gives_one_line_and_status_2(tmp_path, flags):
    done = command("train", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("dctps: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_one_line_and_the_same_command_continues(tmp_path, number, status):
    argv = ["train", "--epochs", "3", "--batch-size", "32"]
    with subprocess.Popen(
        [*DCTPS, *argv, "--out", "run"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline().split()[:2] == ["epoch", "loss"]
        assert process.stdout.readline().startswith("    1  ")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    where = re.fullmatch(
        r"dctps: stopped; run is saved (.*): the same command continues from there\n", err
    ).group(1)

    again = command(*argv, "--out", "run", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr == f"dctps: run continues {where}\n"
    assert command(*argv, "--out", "whole", cwd=tmp_path).returncode == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_signal_before_the_first_step(tmp_path):
    """While torch is still being imported, say."""
    with subprocess.Popen(
        [*DCTPS, "train", "--out", "run"],
        cwd=tmp_path, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert "Traceback" not in err
    assert err.count("\n") <= 1


def test_a_limit_on_the_size_of_files_is_one_line_and_the_run_goes_on_without_it(tmp_path):
    """A disk that is really full needs a disk; this is the same, for one process."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *DCTPS, "train", "--epochs", "1", "--out", "run"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "dctps: error: cannot write to run (File too large): free some space, or choose another --out\n"
    )
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "config.json",
        "data.json",
        "lock",
    ]
    assert command("train", "--epochs", "1", "--out", "run", cwd=tmp_path).returncode == 0


def test_two_processes_on_one_folder(tmp_path):
    argv = ["train", "--epochs", "10000", "--out", "run"]
    with subprocess.Popen(
        [*DCTPS, *argv], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as first:
        first.stdout.readline()
        second = command(*argv, cwd=tmp_path)
        first.kill()
    assert second.returncode == 2
    assert "another process is writing to run" in second.stderr
