"""Damaged files in run folders: each command does what it can, and says the rest in a line."""

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from dctps.analysis.figure_runs import runs_of_figure
from dctps.analysis.figures import draw_figure
from dctps.analysis.runs import read_runs
from dctps.analysis.sweep_report import write_report
from dctps.benchmarking.costs import COST, measure_cost
from dctps.benchmarking.initial import INITIAL, TRAINED, examine
from dctps.cli import main, program
from dctps.cli.common import Machine, Output
from dctps.cli.report import Evaluate, Report
from dctps.cli.train import Train
from dctps.experiments.config import to_dict
from dctps.experiments.run import run
from dctps.sweeps.perform import perform
from dctps.sweeps.sweep import look_ahead, run_sweep

WORDS = [
    "dataset=digits", "method=dctps", "density=.05", "epochs=1", "batch_size=32", "augment=false",
    "train_images=64", "eval_images=32", "batch_seed=none",
]  # fmt: skip


def leaves(change):
    """A damage that is sound JSON: `change` in the place of every value that is no object or list."""

    def deep(value):
        if isinstance(value, dict):
            return {key: deep(item) for key, item in value.items()}
        return [deep(item) for item in value] if isinstance(value, list) else change(value)

    def damage(content):
        lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
        return "\n".join(json.dumps(deep(json.loads(line))) for line in lines).encode()

    return damage


def without(index):
    """A damage that is sound JSON: the key at that place is missing."""

    def damage(content):
        values = json.loads(content)
        del values[list(values)[index % len(values)]]
        return json.dumps(values).encode()

    return damage


ANY = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[:-3],
    "noise": lambda content: bytes(range(256)) * 4,
    "half text": lambda content: b"\xff\xfe" + content[2:],
    "zeros": lambda content: bytes(len(content)),
    "nested": lambda content: b"[" * 100_000,
    "null": lambda content: b"null",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
    "number": lambda content: b"7",
    "folder": None,
    "missing": ...,
}
SOUND = {
    "texts": leaves(str),
    "nulls": leaves(lambda value: None),
    "not finite": leaves(lambda value: float("nan") if isinstance(value, float) else value),
    "infinite": leaves(lambda value: float("inf") if isinstance(value, int | float) else value),
    "negative": leaves(lambda value: -1),
    "lists": leaves(lambda value: []),
    "objects": leaves(lambda value: {"a": 1}),
    "truths": leaves(lambda value: True),
    "without 0": without(0),
    "without 1": without(1),
    "without 2": without(2),
    "without last": without(-1),
}
TEXTS = ["config.json", "data.json", "metrics.jsonl", "summary.json", "backends.json", INITIAL, TRAINED, COST]
BINARIES = ["model.safetensors", "best.safetensors", "lock"]
DAMAGES = [(file, kind) for file in TEXTS for kind in ANY | SOUND]
DAMAGES += [(file, kind) for file in BINARIES for kind in ANY]
RUNS = runs_of_figure("1", "reduced", [*WORDS, f"seed={','.join(map(str, range(len(DAMAGES) + 1)))}"]).runs


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder of finished runs: the first is sound, and of each other one file is damaged in one way."""
    root = tmp_path_factory.mktemp("figure") / "runs"
    names = list(RUNS)
    sound = root / names[0]
    run(RUNS[names[0]], out=sound, threads=1, tune=True)
    examine(RUNS[names[0]], sound, device="cpu", threads=1)
    measure_cost(RUNS[names[0]], sound, threads=1)
    for name, (file, kind) in zip(names[1:], DAMAGES, strict=True):
        shutil.copytree(sound, root / name)
        (root / name / "config.json").write_text(json.dumps(to_dict(RUNS[name])))
        path, damage = root / name / file, (ANY | SOUND)[kind]
        content = path.read_bytes()
        path.unlink()
        if damage is None:
            path.mkdir()
        elif damage is not ...:
            path.write_bytes(damage(content))
    return root


def answer(capfd, *argv, command=None):
    """Status and output of a command, whose errors are lines for a person; `command` is one that is read."""
    words = [str(word) for word in argv]
    status = main(words) if command is None else program._perform(command, words)
    out, err = capfd.readouterr()
    assert status in (0, 2) and "Traceback" not in err
    assert all(line.startswith("dctps: ") for line in err.splitlines()), err
    assert status == 0 or "dctps: error: " in err
    return status, out, err


def test_there_are_enough():
    assert len(DAMAGES) >= 200


def test_of_one_run_each_command_answers(damaged, tmp_path, capfd):
    names = list(RUNS)
    accuracy = json.loads((damaged / names[0] / "summary.json").read_text())["last_test_accuracy"]
    statuses = {"report": [], "evaluate": [], "train": []}
    for name, (file, kind) in zip(names[1:], DAMAGES, strict=True):
        folder = tmp_path / name
        shutil.copytree(damaged / name, folder)
        machine = Machine(threads=1)
        commands = {
            "report": Report((folder,)),
            "evaluate": Evaluate(folder, machine),
            "train": Train(run=RUNS[name], machine=machine, output=Output(out=folder)),
        }
        for command, read in commands.items():  # reading the flags 700 times would take most of the time
            status, out, err = answer(capfd, command=read)
            statuses[command].append(status)
            if kind == "folder" and "train again" in err:
                assert "Is a directory" not in err, err
            if status == 0 and command == "train" and file != "summary.json":
                assert f"test accuracy {accuracy:.4f}" in out
        shutil.rmtree(folder)
    # Much of it does not stop a command, and much does.
    assert all(20 < sum(status == 0 for status in found) < len(DAMAGES) - 20 for found in statuses.values())


def test_of_many_runs_the_page_and_the_figures_have_the_sound_ones(damaged, tmp_path, capfd):
    left_out = {}
    found = read_runs(damaged, on_damage=left_out.__setitem__)
    gone = len(RUNS) - len(found) - len(left_out)  # without config.json, or the same run as another by now
    assert found[0].name == min(RUNS) and len(left_out) > 40 and 0 < gone < 5
    status, _, _ = answer(capfd, "report", damaged, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert status == 0 and all(name in page for name in RUNS if (damaged / name / "config.json").exists())
    (tmp_path / "runs").symlink_to(damaged)
    words = [*WORDS, f"seed={','.join(map(str, range(len(RUNS))))}", "--draw-only", "--out", tmp_path]
    status, out, err = answer(capfd, "figure", "1", "--scale", "reduced", *words)
    assert status == 0 and out and err.count("is left out: ") == len(RUNS) - len(found) - gone
    with (tmp_path / "figure1.csv").open() as file:
        (row,) = csv.DictReader(file)
    wanted = list(RUNS.values())
    assert row["n"] == str(sum(one.config in wanted and one.max_val_accuracy is not None for one in found))
    for figure in ("4", "5", "table1"):  # which read what was measured, too
        assert draw_figure(figure, found, wanted, {}, tmp_path)


def test_a_sweep_does_the_others_and_says_what_is_wrong(damaged, tmp_path):
    shutil.copytree(damaged, tmp_path / "runs")

    def here(jobs, workers):
        for job in jobs:
            yield from perform([job], lambda name, event: None)

    look_ahead(RUNS, tmp_path / "runs")
    result = run_sweep(RUNS, tmp_path / "runs", executor=here)
    assert next(iter(RUNS)) in result.finished and len(result.finished) + len(result.failed) == len(RUNS)
    raw = ("KeyError", "TypeError", "AttributeError")
    assert result.failed and not any(text.startswith(raw) for text in result.failed.values())


def test_what_is_measured_is_measured_anew_where_its_file_is_damaged(damaged, tmp_path):
    sound = damaged / next(iter(RUNS))
    for file, make in ((INITIAL, examine), (TRAINED, examine), (COST, measure_cost)):
        folder = tmp_path / file
        shutil.copytree(sound, folder)
        (folder / file).write_bytes(b"{")
        make(RUNS[sound.name], folder, threads=1)
        assert json.loads((folder / file).read_text()).keys() == json.loads((sound / file).read_text()).keys()


@pytest.mark.parametrize("file", ["config.json", "data.json", "metrics.jsonl", "summary.json", "."])
def test_a_missing_permission_is_no_reason_to_train_again(damaged, file):
    """In a child that may not read what belongs to root; the folder is one that it may reach."""
    root = Path(tempfile.mkdtemp())
    try:
        name = next(iter(RUNS))
        shutil.copytree(damaged / name, root / "runs" / name)
        other = list(RUNS)[1]
        shutil.copytree(damaged / name, root / "runs" / other)
        config = root / "runs" / other / "config.json"
        config.write_text(json.dumps(to_dict(RUNS[other])))
        for path in (root, root / "runs"):
            path.chmod(0o777)
        (root / "runs" / name / file).chmod(0)
        write_report(root / "runs", file=root / "warm.html")  # everything is imported as root
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.getuid() == 0:
                    os.setresuid(65534, 65534, 65534)
                said = {}
                found = [one.name for one in read_runs(root / "runs", on_damage=said.__setitem__)]
                write_report(root / "runs", file=root / "page.html")
                page = (root / "page.html").read_text()
                # What the data were is of no account to a run's numbers.
                left_out = [] if file == "data.json" else [name]
                good = list(said) == left_out and {*found, *left_out} == {name, other}
                good &= "Permission denied" in page and "train again" not in page
                status = 0 if good else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        (root / "runs" / name / file).chmod(0o700)
        shutil.rmtree(root)
