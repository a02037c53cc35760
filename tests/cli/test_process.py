"""The command as a user starts it: a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dctps

DCTPS = [sys.executable, "-m", "dctps"]
# One thread each: two test workers share few cores.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dctps.__file__).parents[1])}


def command(*argv, cwd):
    return subprocess.run(
        [*DCTPS, *argv], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["report", "--help"]]
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


def test_ctrl_c_gives_one_line_and_status_130(tmp_path):
    with subprocess.Popen(
        [*DCTPS, "train", "--epochs", "10000", "--out", "run"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline().startswith("epoch   1")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("dctps: stopped")
    assert err.count("\n") == 1


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
