"""The notebooks run from the first cell to the last, as `Restart and run all` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_offset_and_method", "read_a_sweep", "sixty_seconds"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")  # numbers go stale
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    # As in a notebook, the program is no file that a worker process could import.
    done = subprocess.run(
        [sys.executable, "-c", "import sys; exec(sys.stdin.read())"], cwd=tmp_path,
        input=code, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 3
