"""Further epochs of a finished run, and a run that was cut short resumed by its folder alone."""

import json
import shutil
import signal

import pytest
import torch
from tests.support.faults import send_after

import dctps
from dctps.cli import main
from dctps.data import load_dataset
from dctps.experiments import RunConfig
from dctps.experiments.continued import begin_from, continuing
from dctps.experiments.run import run

FLAGS = ["--threads", "1", "--train-images", "96", "--eval-images", "50"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["dctps", "sdctps-rigl", "dense", "norms", "hyperplane", "snip", "dsr"])
def test_further_epochs_begin_with_the_network_of_the_last(tmp_path, method, capfd):
    density = [] if method in ("dense", "norms") else ["--density", "0.05"]
    model = ["--model", "resnet20"] if method == "norms" else []
    first, second = tmp_path / "first", tmp_path / "second"
    flags = [*FLAGS, "--method", method, *density, *model]
    assert main(["train", "--epochs", "1", *flags, "--out", str(first)]) == 0
    before = (first / "model.safetensors").read_bytes()
    # At a rate of nearly nothing the network stays as it was.
    resume = ["train", "--resume", str(first), "--epochs", "2", "--lr", "1e-12", "--weight-decay", "0"]
    assert main([*resume, "--schedule", "constant", "--threads", "1", "--out", str(second)]) == 0
    old, new = (dctps.load_run(folder) for folder in (first, second))
    norms = {name for name, _ in old.named_buffers() if "running" in name or "num_batches" in name}
    for (name, a), (_, b) in zip(old.state_dict().items(), new.state_dict().items(), strict=True):
        if name not in norms and method not in ("sdctps-rigl", "dsr"):  # whose supports move
            assert torch.equal(a, b) if not a.is_floating_point() else torch.allclose(a, b, atol=1e-9), name
    assert [record["epoch"] for record in metrics(second)] == [1, 2]
    assert (first / "model.safetensors").read_bytes() == before
    config = json.loads((second / "config.json").read_text())
    assert config["method"] == method and len(config["start"]) == 32
    trains = sum(p.numel() for p in old.parameters() if p.requires_grad)
    report = json.loads((second / "summary.json").read_text())["report"]
    assert sum(report["trainable"].values()) == trains or method == "norms"
    if method == "norms":
        assert set(report["trainable"]) >= {"norm"} and not report["trainable"].get("dense")


def test_more_epochs_learn_more_and_can_be_continued_again(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "2", "--density", "0.05", "--threads", "1", "--out", "a"]) == 0
    assert main(["train", "--resume", "a", "--epochs", "6", "--threads", "1"]) == 0
    (b,) = (tmp_path / "runs").iterdir()
    assert b.name.startswith("lenet5-digits-dctps-0.05-seed0-epochs6-start")
    accuracy = metrics(b)[-1]["test_accuracy"]
    assert accuracy > metrics(tmp_path / "a")[-1]["test_accuracy"] + 0.1
    assert main(["train", "--resume", str(b), "--epochs", "1", "--threads", "1", "--out", "c"]) == 0
    start = {
        json.loads((f / "config.json").read_text()).get("start") for f in (tmp_path / "a", b, tmp_path / "c")
    }
    assert len(start) == 3
    for command in ("report", "evaluate"):
        assert main([command, str(b)]) == 0


def test_one_that_was_cut_short_ends_with_the_numbers_of_one_that_was_not(tmp_path, capfd):
    assert main(["train", "--epochs", "1", *FLAGS, "--out", str(tmp_path / "a")]) == 0
    line = ["train", "--resume", str(tmp_path / "a"), "--epochs", "2", "--threads", "1", "--out"]
    assert main([*line, str(tmp_path / "whole")]) == 0
    handle = send_after(2, signal.SIGTERM)
    try:
        assert main([*line, str(tmp_path / "cut")]) == 143
    finally:
        handle.remove()
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    assert main([*line, str(tmp_path / "cut")]) == 0
    # Its own folder is enough, even if the first run is gone.
    shutil.rmtree(tmp_path / "a")
    capfd.readouterr()
    assert main(["train", "--resume", str(tmp_path / "again"), "--threads", "1"]) == 0
    assert "again continues in epoch 1 of 2, after step" in capfd.readouterr().err
    whole, cut, again = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut", "again")
    )
    assert whole == cut == again


def test_an_unfinished_run_is_resumed_by_its_folder_alone(tmp_path, capfd):
    line = ["train", "--epochs", "2", *FLAGS, "--density", "0.05", "--out"]
    assert main([*line, str(tmp_path / "whole")]) == 0
    handle = send_after(4, signal.SIGTERM)
    try:
        assert main([*line, str(tmp_path / "cut")]) == 143
    finally:
        handle.remove()
    capfd.readouterr()
    assert main(["train", "--resume", str(tmp_path / "cut"), "--epochs", "3"]) == 2
    assert "is not finished, and has epochs 2, not 3" in capfd.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "cut"), "--threads", "1"]) == 0
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_what_cannot_be_continued_is_one_line(tmp_path, capfd):
    small = RunConfig(epochs=1, density=0.05, train_images=96, eval_images=50)
    run(small, out=tmp_path / "a", threads=1)
    run(
        RunConfig(epochs=1, method="imp", density=0.9, levels=1, train_images=64),
        out=tmp_path / "imp",
        threads=1,
    )
    a = str(tmp_path / "a")
    lines = {
        f"--resume {tmp_path}": "holds no run",
        f"--resume {a} --density 0.1": "density 0.1 is of another network than that in",
        f"--resume {a} --method sdctps": "method sdctps is of another network",
        f"--resume {a} --recipe paper": "leave one of the two out",
        f"--resume {tmp_path / 'imp'}": "whose levels are trainings of their own",
        f"--resume {a} --dataset cifar10 --data-dir {tmp_path}": "cifar",
        "--start 0123 --density 0.05 --out x": "begin with that by `dctps train --resume FOLDER`",
    }
    for line, message in lines.items():
        assert main(["train", *line.split()]) == 2, line
        err = capfd.readouterr().err
        assert err.startswith("dctps: error: ") and err.count("\n") == 1 and message in err
    config = continuing(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="is not the one that the run began with"):
        begin_from(tmp_path / "a", config, load_dataset("digits"), torch.device("cpu"), None)
