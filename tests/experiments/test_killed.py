"""A run that is cut short at any operation on its files ends like one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# All of them in benchmarks/kill.py.
@pytest.mark.parametrize(
    ("mode", "stride", "method"),
    [
        ("kill", 2, "dctps"),
        ("power cut, names lost", 5, "dctps"),
        ("power cut, contents lost", 5, "dctps"),
        ("disk full", 5, "dctps"),
        ("kill", 5, "dctps-rigl"),
        ("kill", 5, "dsr"),
        ("kill", 9, "imp"),
    ],
)
def test_cut_short_at_operations_on_files(tmp_path, mode, stride, method):
    other = [] if method == "dctps" else [method]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults", mode, tmp_path, str(stride), *other],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 40
    for line in done.stderr.splitlines():
        assert line.startswith("error: cannot write to")
        assert "No space left on device" in line
    assert bool(done.stderr) == (mode == "disk full")
