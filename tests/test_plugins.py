"""A plugin's offset, allocation, criterion, dynamics, network and methods, from the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dctps

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(dctps.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
TRAIN = ["train", "--plugin", "examples/plugin.py", "--model", "tiny", "--density", "0.05", "--epochs", "2"]


def call(*words, folder=ROOT, **environment):
    """What `python -m dctps` prints, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "dctps", *map(str, words)],
        cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The folder in which the commands of CONTRIBUTING.md have been run."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / "CONTRIBUTING.md").read_text().split("<!-- plugin commands -->")[1].split("```")[1]
    commands = re.findall(r"^\$ dctps (.*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        status, said = call(*command.split(), folder=folder)
        assert status == 0, (command, said)
    return folder / "runs"


def test_the_documented_commands_use_the_plugin(documented):
    config = json.loads((documented / "own" / "config.json").read_text())
    assert config["plugin"] == [str((ROOT / "examples" / "plugin.py").resolve())]
    rows = json.loads((documented / "own" / "summary.json").read_text())["report"]["rows"]
    assert {row["offset"] for row in rows} == {"flat"}
    assert rows[0]["nnz"] == 1334  # what the second layer cannot hold of its two thirds
    assert rows[1]["nnz"] == 320
    finished = {path.parent.name for path in (documented / "sweep").glob("*/summary.json")}
    assert finished == {
        f"tiny-digits-{m}-seed0-epochs1"
        for m in ("dctps-0.05", "flat-late-0.05", "steep-0.05", "flat-late-0.1")
    }
    page = (documented / "sweep.html").read_text()
    assert all(name in page for name in ("flat-late", "steep", "DCTpS"))


def test_a_stopped_run_goes_on_without_the_flag_being_there(documented, tmp_path):
    """It is the folder that knows the plugin: `report` and `evaluate` have no flag here."""
    status, said = call("report", documented / "own")
    assert status == 0 and "flat" in said
    status, said = call("evaluate", documented / "own")
    assert status == 0 and "accuracy" in said


def test_the_options_of_a_criterion_come_from_its_signature(tmp_path):
    status, said = call(*TRAIN, "--method", "steep", "--options", "power=2", "--out", tmp_path / "a")
    assert status == 0, said
    assert json.loads((tmp_path / "a" / "config.json").read_text())["options"] == ["power=2.0"]
    status, said = call(*TRAIN, "--method", "steep", "--options", "power=much", "--out", tmp_path / "b")
    assert (status, said) == (2, "dctps: error: the option power must be a number, got 'much'\n")
    status, said = call(*TRAIN, "--method", "dctps", "--options", "power=2", "--out", tmp_path / "b")
    assert status == 2 and "the option power belongs to steep" in said


def test_the_numbers_of_a_dynamics_come_from_its_signature(documented):
    config = json.loads((documented / "own" / "config.json").read_text())
    assert (config["update_interval"], config["drop_fraction"], config["dynamics_end"]) == (50, 0.1, 0.75)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not there"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_such", "No module named"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path, content, words):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    status, said = call("train", "--plugin", file)
    assert status == 2
    assert words in said and said.count("\n") == 1


def test_an_installed_plugin_needs_no_flag(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "examples" / "plugin.py").read_text())
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dctps.plugins]\nmine = mine\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    status, said = call(
        "report", "--model", "tiny", "--method", "flat-late", "--density", "0.05", PYTHONPATH=path
    )
    assert status == 0 and "flat" in said
    status, said = call("report", "--model", "tinny", PYTHONPATH=path)
    assert status == 2 and "did you mean 'tiny'" in said
