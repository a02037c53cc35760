"""A finished run answers for the data that it was trained on, and for no others."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.support.image_files import LABELS, QUICK, bars, classes_folder, pixels

from dctps.cli import main
from dctps.data import from_arrays, register_dataset
from dctps.data.registry import DATASETS, is_published
from dctps.experiments import RunConfig
from dctps.experiments.folder import RunFolderError
from dctps.experiments.run import evaluate_run, run
from dctps.sweeps.grid import grid
from dctps.sweeps.sweep import run_sweep

CONFIG = RunConfig(dataset="bars", density=0.05, epochs=1, batch_size=8)


def of(seed=1, **choices):
    return from_arrays(bars(), bars(30, seed), name="bars", **choices)


def save(path, seed):
    np.savez(path, images=bars(seed=seed)[0], labels=LABELS)


def test_other_arrays_in_python_are_refused_and_the_same_are_not(tmp_path):
    summary = run(CONFIG, dataset=of(), out=tmp_path / "run", threads=1)
    assert run(CONFIG, dataset=of(), out=tmp_path / "run", threads=1) == summary
    refused = pytest.raises(
        RunFolderError, match="different: the test images or their labels.*--data-dir.*--out"
    )
    with refused:
        run(CONFIG, dataset=of(2), out=tmp_path / "run", threads=1)
    with refused:
        evaluate_run(tmp_path / "run", dataset=of(2), threads=1)
    with pytest.raises(RunFolderError, match="different: the train images"):
        run(
            CONFIG,
            dataset=from_arrays(bars(seed=5), bars(30, 1), name="bars"),
            out=tmp_path / "run",
            threads=1,
        )
    labels = bars(30, 1)[0], (LABELS[:30] + 1) % 3
    with pytest.raises(RunFolderError, match="different: the test images or their labels"):
        run(CONFIG, dataset=from_arrays(bars(), labels, name="bars"), out=tmp_path / "run", threads=1)


@pytest.mark.parametrize("finished", [True, False])
def test_what_else_of_the_data_decides_the_numbers(tmp_path, finished):
    """The images are the same; how they are scaled and mirrored is not."""

    def stop(record):
        raise KeyboardInterrupt

    config = CONFIG if finished else replace(CONFIG, epochs=2)
    try:
        run(config, dataset=of(), out=tmp_path / "run", threads=1, on_epoch=None if finished else stop)
    except KeyboardInterrupt:
        assert not finished
    with pytest.raises(RunFolderError, match="flip False there and True here"):
        run(config, dataset=of(flip=True), out=tmp_path / "run", threads=1)
    other = replace(of(), mean=(0.25,))
    with pytest.raises(RunFolderError, match="mean .* there and .0.25. here"):
        run(config, dataset=other, out=tmp_path / "run", threads=1)
    close = replace(of(), mean=(of().mean[0] * (1 + 1e-6),))
    assert run(config, dataset=close, out=tmp_path / "run", threads=1)["last_epoch"] == config.epochs


def test_a_folder_of_an_older_version_still_answers(tmp_path):
    run(CONFIG, dataset=of(), out=tmp_path / "run", threads=1)
    note = json.loads((tmp_path / "run" / "data.json").read_text())
    for left_out in (("mean", "std", "flip"), ("mean", "std", "flip", "sha256")):
        old = {name: value for name, value in note.items() if name not in left_out}
        (tmp_path / "run" / "data.json").write_text(json.dumps(old))
        assert run(CONFIG, dataset=of(), out=tmp_path / "run", threads=1)["last_epoch"] == 1
    (tmp_path / "run" / "data.json").unlink()
    assert run(CONFIG, dataset=of(2), out=tmp_path / "run", threads=1)["last_epoch"] == 1


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_the_command_line_refuses_other_files_and_takes_moved_ones(tmp_path, capfd, kind):
    for place, seed in (("mine", 0), ("other", 9)):
        if kind == "folder":
            classes_folder(tmp_path / place, {"ant": 8, "bee": 8 + (place == "other")}, size=32)
        else:
            save(tmp_path / place, seed)
    suffix = ".npz" if kind == "arrays" else ""
    flags = ["train", *QUICK, "--dataset", kind, "--out", str(tmp_path / "run"), "--data-dir"]
    assert main([*flags, str(tmp_path / f"mine{suffix}")]) == 0
    assert main([*flags, str(tmp_path / f"other{suffix}")]) == 2
    err = capfd.readouterr().err
    assert "began on other data" in err and "different: " in err and err.count("\n") == 1
    (tmp_path / f"mine{suffix}").rename(tmp_path / f"moved{suffix}")
    assert main([*flags, str(tmp_path / f"moved{suffix}")]) == 0
    assert "test accuracy" in capfd.readouterr().out


def test_a_sweep_says_which_of_its_finished_runs_are_of_other_data(tmp_path, capfd):
    save(tmp_path / "a.npz", 0)
    save(tmp_path / "b.npz", 3)
    runs = grid({"dataset": "arrays", "epochs": 1, "density": 0.05, "seed": [0, 1]})
    for name, config in runs.items():
        run(config, out=tmp_path / "runs" / name, data_dir=tmp_path / "a.npz", threads=1)
    assert run_sweep(runs, tmp_path / "runs", data_dir=tmp_path / "a.npz").finished == list(runs)
    result = run_sweep(runs, tmp_path / "runs", data_dir=tmp_path / "b.npz")
    assert not result.finished and list(result.failed) == list(runs)
    assert all("began on other data" in message for message in result.failed.values())
    words = ["dataset=arrays", "epochs=1", "density=.05", "seed=0,1"]
    argv = ["sweep", *words, "--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "b.npz")]
    assert main(argv) == 2
    assert capfd.readouterr().err.count("began on other data") == 2


def test_published_data_need_not_be_there_again(tmp_path):
    assert [is_published(name) for name in ("digits", "cifar10", "cifar100", "folder", "arrays")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    config = RunConfig(dataset="mine", density=0.05, epochs=1, train_images=32, image_size=32)
    loads = []

    def load(data_dir, download):
        loads.append(data_dir)
        return from_arrays((pixels(0, 60, 32, 32), LABELS), name="mine")

    try:
        for published in (True, False):
            DATASETS.pop("mine", None)
            register_dataset("mine", published=published)(load)
            for _ in range(2):
                run(config, out=tmp_path / str(published), threads=1)
    finally:
        DATASETS.pop("mine", None)
    assert len(loads) == 1 + 2
