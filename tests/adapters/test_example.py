"""The example, and the page's, run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dctps.adapters import list_adapters

ROOT = Path(__file__).parents[2]


def test_the_example_loads_what_it_saved(tmp_path):
    script = ROOT / "examples" / "adapters.py"
    assert len(script.read_text().splitlines()) < 120
    done = subprocess.run(
        [sys.executable, script, "--epochs", "1", "--out", tmp_path],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for name in ("upside-down", "in-noise"):
        before, after, size = re.search(
            rf"{name}: (\S+)% before, (\S+)% with an adapter of (\S+) bytes", done.stdout
        ).groups()
        assert float(after) > float(before)
        assert int(size.replace(",", "")) == (tmp_path / name / "adapter.safetensors").stat().st_size < 5000
        # the file has half precision: a digit more or less
        loaded = float(re.search(rf"loaded {name}: (\S+)%", done.stdout)[1])
        assert loaded == pytest.approx(float(after), abs=0.6)
    assert lines[0].split()[1] == lines[-1].split()[3]  # the pretrained network is as it was


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adapters.md").read_text(), re.DOTALL)
    scope = {}
    exec(example.replace("range(100)", "range(2)"), scope)
    assert list_adapters(scope["model"]) == ["default", "again"]
    assert (tmp_path / "mine" / "adapter.safetensors").stat().st_size < 12_000
