import fcntl
import json
import re

import pytest

from dctps.cli import main
from dctps.experiments.config import resolve
from dctps.product.paths import PATHS


def error_of(capfd, *argv):
    """The one line on standard error of a command that ends with status 2."""
    assert main(argv) == 2
    err = capfd.readouterr().err
    assert err.startswith("dctps: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def trained(tmp_path, capfd):
    argv = ["train", "--epochs", "1", "--density", "0.05", "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    return argv, capfd.readouterr().out


def counts(report):
    """The words of a report without the alphas, which training has moved."""
    return [word for word in report.split() if not re.fullmatch(r"\d\.\d+|1", word)]


def test_train_evaluate_report_agree(tmp_path, trained, capfd):
    _, out = trained
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracy = f"{summary['last_test_accuracy']:.4f}"
    header, row = (line.split() for line in out.splitlines()[:2])
    assert header == ["epoch", "loss", "train", "validation", "test", "seconds"]
    assert row[0] == "1" and row[4] == accuracy
    assert out.splitlines()[-1].startswith(f"all of it is in {tmp_path / 'run'}; ")
    assert f"test accuracy {accuracy}" in out

    assert main(["evaluate", str(tmp_path / "run"), "--threads", "1"]) == 0
    assert f"last  test accuracy {accuracy}" in capfd.readouterr().out

    assert main(["report", str(tmp_path / "run")]) == 0
    of_the_run = counts(capfd.readouterr().out)
    assert main(["report", "--density", "0.05"]) == 0
    assert counts(capfd.readouterr().out) == of_the_run
    assert main(["report", "--density", "0.06"]) == 0
    assert counts(capfd.readouterr().out) != of_the_run


def test_report_of_the_paths_that_layers_take(tmp_path, trained, capfd):
    assert main(["report", "--backend", "--density", "0.05"]) == 0
    by_flags = capfd.readouterr().out
    lines = [line.replace("channels last", "channels-last").split() for line in by_flags.splitlines()]
    assert "channels-last" in lines[2]  # as runs have their images
    assert [line[0] for line in lines[1:]] == [
        "features.0",
        "features.3",
        *(f"classifier.{i}" for i in (1, 3, 5)),
        "estimates:",
    ]
    assert lines[1][3] == "32x1x32x32"  # the digits' batch size
    names = {path.name for path in PATHS}
    assert all(line[7] in names and line[8] == "rule" for line in lines[1:-1])
    assert main(["report", str(tmp_path / "run"), "--backend"]) == 0
    assert capfd.readouterr().out == by_flags
    assert main(["report", "--backend", "--density", "0.05", "--batch-size", "7"]) == 0
    assert "7x1x32x32" in capfd.readouterr().out


def test_train_with_measured_backends(tmp_path, capfd):
    flags = ["train", "--epochs", "1", "--density", "0.05", "--threads", "1", "--out"]
    assert main([*flags, str(tmp_path / "a"), "--tune"]) == 0
    assert main([*flags, str(tmp_path / "b"), "--backends", str(tmp_path / "a" / "backends.json")]) == 0
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    capfd.readouterr()
    assert main(["report", str(tmp_path / "b"), "--backend"]) == 0
    assert capfd.readouterr().out.count(" layer ") >= 5
    assert "nowhere.json cannot be used" in error_of(capfd, *flags, "c", "--backends", "nowhere.json")


def test_report_on_a_network_for_another_image_size(capfd):
    flags = ["report", "--model", "vgg11", "--dataset", "cifar10", "--alpha", "match", "--classes", "200"]
    assert main([*flags, "--image-size", "64"]) == 0
    # Eight 3x3 convolutions, and 200 outputs of 512 features.
    assert "of 9,320,128 weights train" in capfd.readouterr().out
    assert "give it 16 or more" in error_of(capfd, *flags, "--image-size", "8")
    assert "lenet5 takes images of 32 x 32" in error_of(capfd, "report", "--image-size", "64")


def test_a_finished_run_prints_its_summary_again(trained, capfd):
    argv, out = trained
    assert main(argv) == 0
    again = capfd.readouterr().out
    assert again
    assert out.endswith(again)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--method snip --density 0",
            "density 0 trains no weight, and without an offset every layer is then zero",
        ),
        ("--density 2", "density must be in [0, 1], got 2.0"),
        ("--epochs 0", "epochs must be at least 1"),
        ("--model lenet", "did you mean 'lenet5'"),
        ("--dataset digit", "did you mean 'digits'"),
        ("--method dtcps", "did you mean 'dctps'"),
        ("--offset hadamar", "did you mean 'hadamard'"),
        ("--allocation erl", "did you mean"),
        ("--criterion rando", "did you mean 'random'"),
        ("--optimizer adamw2", "did you mean 'adamw'"),
        ("--schedule cyclic", "unknown schedule"),
        ("--dataset cifar10 --data-dir nowhere", "nowhere"),
        ("--checkpoint-interval 0", "checkpoint_interval must be at least 1 step, got 0"),
        ("--threads 0", "threads must be from 1 to 1024, got 0"),
        ("--device gpu", "unknown device 'gpu'"),
        ("--out /dev/null/run", "cannot write to /dev/null/run"),
    ],
)
def test_every_mistake_ends_with_one_line(capfd, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capfd, "train", *flags.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_different_run(trained, capfd):
    argv, _ = trained
    message = error_of(capfd, *argv, "--seed", "1", "--augment")
    assert "holds a different run (seed 0 there and 1 here, augment False there and True here)" in message


def test_a_damaged_state(tmp_path, trained, capfd):
    argv, _ = trained
    (tmp_path / "run" / "summary.json").unlink()
    message = error_of(capfd, *argv)
    assert "has metrics.jsonl but no state.safetensors" in message
    (tmp_path / "run" / "state.safetensors").write_bytes(b"\x80\x04N.")
    message = error_of(capfd, *argv)
    assert "state.safetensors cannot be used (it is no state file, or was cut short)" in message


def test_a_locked_folder(tmp_path, capfd):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing" in error_of(
            capfd, "train", "--method", "dense", "--out", str(tmp_path / "run")
        )


def test_a_loss_that_is_not_finite(tmp_path, capfd):
    flags = "--method dense --optimizer sgd --lr 1e20 --schedule constant --threads 1"
    assert "epoch 1, step" in error_of(capfd, "train", *flags.split(), "--out", str(tmp_path / "run"))


def test_damaged_files(tmp_path, trained, capfd):
    model = tmp_path / "run" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-5])
    assert "no readable checkpoint" in error_of(capfd, "evaluate", str(tmp_path / "run"))
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json" in error_of(capfd, "report", str(tmp_path / "run"))
    assert "config.json" in error_of(capfd, *trained[0])


def test_a_damaged_data_file(tmp_path, capfd):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"not a pickle")
    flags = ["--dataset", "cifar10", "--data-dir", str(tmp_path)]
    assert "cifar-10-batches-py" in error_of(capfd, "train", *flags, "--out", str(tmp_path / "run"))


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_folder_that_is_no_run(tmp_path, capfd, command):
    assert "holds no run" in error_of(capfd, command, str(tmp_path))


@pytest.mark.parametrize(
    "argv",
    [
        ["trian"],
        ["train", "--densty", "0.1"],
        ["train", "--density", "x"],
        ["evaluate"],
        ["train", "--amp", "8"],
    ],
)
def test_flags_that_do_not_parse(capfd, argv):
    with pytest.raises(SystemExit) as info:
        main(argv)
    assert info.value.code == 2
    assert capfd.readouterr().err


def test_a_mistyped_flag_is_answered_with_the_nearest(capfd):
    with pytest.raises(SystemExit):
        main(["train", "--densty", "0.1"])
    assert "--density" in capfd.readouterr().err


def test_recipes_are_listed_and_shown(capfd):
    assert main(["recipes"]) == 0
    listed = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["few", "fixup", "force", "paper", "short", "synflow"]
    assert main(["recipes", "paper", "--method", "dense"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.split("\n\n")[-1].splitlines())
    assert (shown["optimizer"], shown["lr"], shown["milestones"]) == ("sgd", "0.1", "0.595 0.795")
    assert "unknown recipe 'shor': did you mean 'short'" in error_of(capfd, "recipes", "shor")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"model": "lenet5", "dataset": "digits", "method": "dctps", "lr": 6e-3, "batch_size": 32}),
        ("--recipe short", {"dataset": "digits", "schedule": "onecycle", "batch_size": 32, "augment": False}),
        ("--recipe=paper", {"model": "resnet50", "dataset": "cifar100", "lr": 1e-3, "epochs": 200}),
        ("--recipe paper --model lenet5", {"model": "lenet5", "dataset": "cifar100", "method": "dctps"}),
        ("--method dense --recipe paper", {"optimizer": "sgd", "lr": 0.1, "schedule": "multistep"}),
        ("--recipe paper --epochs 3 --lr 0.5 --density 0.2", {"epochs": 3, "lr": 0.5, "density": 0.2}),
        ("--recipe paper --method dense --batch-size 7", {"batch_size": 7, "milestones": (0.595, 0.795)}),
        ("--recipe synflow --no-nesterov --method random-erk", {"nesterov": False, "weight_decay": 1e-4}),
        ("--recipe force --dataset tinyimagenet --method random-erk", {"epochs": 300}),
        # What is given counts even where it is what another run would have by itself.
        ("--recipe paper --epochs 20 --dataset digits", {"epochs": 20, "dataset": "digits", "lr": 1e-3}),
    ],
)
def test_flags_are_laid_over_a_recipe(monkeypatch, flags, expected):
    from dctps.cli import program

    seen = []
    monkeypatch.setattr(program, "_perform", lambda command, argv: seen.append(command.run) or 0)
    assert main(["train", *flags.split()]) == 0
    (config,) = map(resolve, seen)
    assert {name: getattr(config, name) for name in expected} == expected


def test_an_unknown_recipe_and_bad_flags_over_one(capfd):
    assert "did you mean 'paper'" in error_of(capfd, "train", "--recipe", "papper")
    assert "unknown method 'dens'" in error_of(capfd, "train", "--recipe", "paper", "--method", "dens")
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "paper", "--epochs", "x"])
