"""The example trains a network under the epsilon that it was given."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("opacus")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("density", ["0.01", "1"])
def test_it_spends_what_it_may(density):
    options = ["--epochs", "2", "--epsilon", "3", "--density", density]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "private.py", *options],
        env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    spent = float(re.search(r"spent epsilon ([\d.]+) at delta 1e-05", done.stdout)[1])
    assert 2.5 < spent <= 3.01
    assert re.search(r"test accuracy [\d.]+%", done.stdout)
    numbers = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[3:]}
    assert numbers["all"] == {"0.01": "851", "1": "61,706"}[density]
