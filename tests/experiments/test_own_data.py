"""Runs on data that are known by their files alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.support.image_files import LABELS, QUICK, bars, classes_folder, pixels, tiny_imagenet

from dctps.cli import main
from dctps.data import DataError, from_arrays
from dctps.experiments import RunConfig
from dctps.experiments.folder import RunFolderError
from dctps.experiments.run import describe_run, evaluate_run, run
from dctps.experiments.signals import Stopped


def test_a_pair_of_arrays_is_learned(tmp_path):
    data = from_arrays(bars(), bars(30, seed=1), name="bars")
    config = RunConfig(dataset="bars", method="sdctps", density=0.05, epochs=6, batch_size=4, augment=False)
    summary = run(config, dataset=data, out=tmp_path / "run", threads=1)
    assert summary["last_test_accuracy"] == 1.0
    note = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (note["name"], note["classes"], note["channels"], note["image_size"]) == ("bars", 3, 1, 32)
    assert (note["train"], note["test"]) == (60, 30)
    assert evaluate_run(tmp_path / "run", dataset=data, threads=1)["last"].accuracy == 1.0
    # The counts need no data.
    assert describe_run(tmp_path / "run").to_dict()["trainable"] == summary["report"]["trainable"]


def test_other_data_neither_continue_nor_evaluate_a_run(tmp_path):
    config = RunConfig(dataset="bars", density=0.05, epochs=2, batch_size=4)
    data, other = (from_arrays(bars(), bars(30, seed), name="bars") for seed in (1, 2))

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, dataset=data, out=tmp_path / "run", threads=1, on_epoch=stop)
    message = "began on other data .60 training and 30 test images there, 60 training and 30 test images here"
    with pytest.raises(RunFolderError, match=message):
        run(config, dataset=other, out=tmp_path / "run", threads=1)
    assert run(config, dataset=data, out=tmp_path / "run", threads=1)["last_epoch"] == 2
    with pytest.raises(RunFolderError, match=message):
        evaluate_run(tmp_path / "run", dataset=other, threads=1)


def test_a_given_data_set_must_be_the_runs(tmp_path):
    data = from_arrays(bars(), name="bars")
    with pytest.raises(ValueError, match="called 'bars', and the run's is 'digits'"):
        run(RunConfig(), dataset=data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_image_size_resizes_any_data_set_and_is_part_of_the_run(tmp_path):
    small = from_arrays((bars()[0][:, :24, :24], LABELS), name="bars")
    config = RunConfig(dataset="bars", density=0.05, epochs=1, image_size=32)
    run(config, dataset=small, out=tmp_path / "run", threads=1)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["image_size"] == 32
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 32


def test_flip_is_the_data_sets_or_the_runs(tmp_path):
    losses = {}
    for flip in (None, False, True):
        data = from_arrays(bars(), bars(30, 1), name="bars", flip=True)
        config = RunConfig(dataset="bars", density=0.05, epochs=1, batch_size=4, flip=flip)
        run(config, dataset=data, out=tmp_path / str(flip), threads=1)
        losses[flip] = json.loads((tmp_path / str(flip) / "metrics.jsonl").read_text())["train_loss"]
    assert losses[None] == losses[True] != losses[False]


def test_a_folder_arrays_and_tiny_imagenet_from_the_command_line(tmp_path, capfd):
    classes_folder(tmp_path / "mine", {"ant": 8, "bee": 8}, size=32)
    np.savez(tmp_path / "a.npz", images=bars()[0], labels=LABELS)
    tiny_imagenet(tmp_path)
    places = {"folder": tmp_path / "mine", "arrays": tmp_path / "a.npz", "tinyimagenet": tmp_path}
    for dataset, place in places.items():
        out = tmp_path / "runs" / dataset
        flags = ["--dataset", dataset, "--data-dir", str(place), "--image-size", "32"]
        assert main(["train", *QUICK, *flags, "--out", str(out)]) == 0
        assert main(["evaluate", str(out), "--data-dir", str(place)]) == 0
        shutil.move(
            place if dataset != "tinyimagenet" else place / "tiny-imagenet-200", tmp_path / f"x{dataset}"
        )
        assert main(["report", str(out)]) == 0
    classes = json.loads((tmp_path / "runs" / "folder" / "data.json").read_text())["class_names"]
    assert classes == ["ant", "bee"]
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "ant" / "3.png").write_bytes(b"x"), "ant/3.png (cannot identify image file"),
        (
            lambda f: (f / "cat").mkdir(),
            "cat holds no image: put some there",
        ),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_bad_files_end_with_one_line(tmp_path, capfd, spoil, message):
    folder = classes_folder(tmp_path / "mine", {"ant": 8, "bee": 8}, size=32)
    spoil(folder)
    flags = ["--dataset", "folder", "--data-dir", str(folder), "--out", str(tmp_path / "run")]
    assert main(["train", *QUICK, *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith("dctps: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


def test_a_report_on_data_of_ones_own_needs_their_sizes(capfd):
    assert main(["report", "--dataset", "folder"]) == 2
    assert "give --classes and --in-channels" in capfd.readouterr().err
    assert main(["report", "--dataset", "folder", "--classes", "7", "--in-channels", "1"]) == 0
    assert "7x84" in capfd.readouterr().out


def test_images_that_are_not_square(tmp_path):
    data = from_arrays((pixels(0, 60, 32, 40), LABELS), name="bars")
    with pytest.raises(DataError, match="40x32, and networks take square ones"):
        run(RunConfig(dataset="bars"), dataset=data, out=tmp_path / "run")


@pytest.mark.parametrize("norm", ["affine", "plain", "shared"])
def test_norms_of_a_run(tmp_path, norm, monkeypatch):
    """A run's choice of norms reaches the network, its file, and the network that the file is loaded into."""
    from dctps.models import registry

    def build(classes, in_channels, image_size=32):
        layers = [torch.nn.Conv2d(in_channels, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
        layers += [torch.nn.Conv2d(8, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
        return torch.nn.Sequential(
            *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes)
        )

    monkeypatch.setitem(registry.MODELS, "normed", build)
    data = from_arrays(bars(), bars(30, 1), name="bars")
    config = RunConfig(
        model="normed", dataset="bars", density=0.2, epochs=2, batch_size=8, norm=norm, bias=norm == "affine"
    )

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped)):
        run(config, dataset=data, out=tmp_path / "run", threads=1, on_epoch=stop)
    summary = run(config, dataset=data, out=tmp_path / "run", threads=1)
    whole = run(config, dataset=data, out=tmp_path / "whole", threads=1)
    assert summary["last_test_accuracy"] == whole["last_test_accuracy"]
    counts = summary["report"]
    assert counts["trainable"]["norm"] == {"affine": 32, "plain": 0, "shared": 16}[norm]
    assert counts["trainable"]["bias"] == (3 if norm == "affine" else 0)
    assert counts["statistics"] == 2 * (8 + 8 + 1)
    again = evaluate_run(tmp_path / "run", dataset=data, threads=1)
    assert again["last"].accuracy == summary["last_test_accuracy"]


def test_norms_that_are_not_there(tmp_path, capfd):
    for norm in ("plain", "shared"):
        assert main(["train", "--norm", norm, "--out", str(tmp_path / "run")]) == 2
        assert "LeNet5 has no normalisation layer" in capfd.readouterr().err
