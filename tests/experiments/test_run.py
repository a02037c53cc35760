import json

import pytest
import torch
from safetensors.torch import load_file

from dctps.data import DataError
from dctps.experiments import RunConfig
from dctps.experiments.folder import RunFolderError
from dctps.experiments.network import describe
from dctps.experiments.run import evaluate_run, run
from dctps.product.rule import environment_backend
from dctps.training import NonFiniteLoss

QUICK = {"epochs": 2, "density": 0.05, "batch_size": 256}


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return records


@pytest.mark.parametrize("method", ["dense", "dctps", "sdctps", "random-uniform", "random-erk"])
def test_a_run_folder_holds_what_the_summary_says(tmp_path, method):
    seen = []
    summary = run(RunConfig(method=method, **QUICK), out=tmp_path / "run", threads=1, on_epoch=seen.append)
    folder = tmp_path / "run"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records == seen
    assert [record["epoch"] for record in records] == [1, 2]
    assert json.loads((folder / "summary.json").read_text()) == summary

    best = max(records, key=lambda record: record["val_accuracy"])
    assert summary["best_epoch"] == best["epoch"]
    assert summary["best_test_accuracy"] == best["test_accuracy"]
    assert summary["last_test_accuracy"] == records[-1]["test_accuracy"]

    again = evaluate_run(folder, threads=1)
    assert again["last"].accuracy == summary["last_test_accuracy"]
    assert again["best"].accuracy == summary["best_test_accuracy"]

    last = load_file(folder / "model.safetensors")
    floats = sum(tensor.numel() for tensor in last.values() if tensor.is_floating_point())
    assert sum(summary["report"]["trainable"].values()) == floats
    before = describe(RunConfig(method=method, **QUICK)).to_dict()
    for count in ("weights", "nnz", "trainable", "disk_bytes"):
        assert before[count] == summary["report"][count]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    torch.manual_seed(123)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(RunConfig(seed=seed, **QUICK), out=tmp_path / name, threads=1)
        torch.rand(7)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(RunConfig(method="dense", epochs=1), out=tmp_path / "run", threads=threads + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_finished_run_is_not_run_again(tmp_path):
    config = RunConfig(method="dense", epochs=1)
    summary = run(config, out=tmp_path / "run", threads=1)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    assert run(config, out=tmp_path / "run", on_epoch=pytest.fail) == summary
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == before


def test_without_a_validation_set_there_is_no_best(tmp_path):
    summary = run(RunConfig(method="dense", epochs=1, validation_size=0.0), out=tmp_path / "run", threads=1)
    assert summary["best_epoch"] is summary["best_test_accuracy"] is None
    assert metrics(tmp_path / "run")[0]["val_accuracy"] is None
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert list(evaluate_run(tmp_path / "run", threads=1)) == ["last"]


def test_alpha_can_be_frozen_and_takes_a_number(tmp_path):
    run(RunConfig(alpha=0.5, alpha_trainable=False, **QUICK), out=tmp_path / "run", threads=1)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved["alpha"].tolist() == [0.5] * 5


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_runs(tmp_path, amp):
    summary = run(RunConfig(amp=amp, **QUICK), out=tmp_path / "run", threads=1)
    assert evaluate_run(tmp_path / "run", threads=1)["last"].accuracy == summary["last_test_accuracy"]


def test_a_loss_that_is_not_finite_leaves_an_unfinished_run(tmp_path):
    config = RunConfig(method="dense", optimizer="sgd", lr=1e20, schedule="constant", epochs=3)
    with pytest.raises(NonFiniteLoss, match="epoch 1, step"):
        run(config, out=tmp_path / "run", threads=1)
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(RunFolderError, match="not finished"):
        evaluate_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "where", "error", "message"),
    [
        ({"density": 2.0}, {}, ValueError, "density must be"),
        ({"model": "lenet"}, {}, ValueError, "did you mean 'lenet5'"),
        ({"dataset": "cifar1"}, {}, ValueError, "did you mean"),
        ({"offset": "dtc"}, {}, ValueError, "did you mean"),
        ({"allocation": "elp"}, {}, ValueError, "did you mean"),
        ({"criterion": "randon"}, {}, ValueError, "did you mean"),
        ({"schedule": "onecylce"}, {}, ValueError, "did you mean"),
        ({"dataset": "cifar10"}, {"data_dir": "nowhere"}, DataError, "nowhere"),
        ({}, {"threads": 0}, ValueError, "threads must be"),
        ({}, {"device": "gpu"}, ValueError, "unknown device 'gpu'"),
        ({}, {"device": "meta"}, ValueError, "not supported"),
        ({}, {"device": "cuda:99"}, ValueError, "no device 'cuda:99'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, change, where, error, message):
    with pytest.raises(error, match=message):
        run(RunConfig(**change), out=tmp_path / "run", **where)
    assert not (tmp_path / "run").exists()


def test_a_report_needs_sizes_for_an_unknown_data_set():
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        describe(RunConfig(dataset="mnist"))
    assert (
        describe(RunConfig(dataset="mnist"), classes=10, in_channels=1).to_dict()["weights"] == 61_770 - 300
    )
    with pytest.raises(ValueError, match="at least 1, got 0"):
        describe(RunConfig(), classes=0)


@pytest.mark.parametrize(("method", "floor"), [("dense", 0.85), ("dctps", 0.65), ("sdctps", 0.7)])
def test_networks_learn_the_digits(tmp_path, method, floor):
    config = RunConfig(method=method, density=0.05, epochs=4, batch_size=32, augment=False)
    assert run(config, out=tmp_path / "run", threads=1)["last_test_accuracy"] > floor


def test_subnormal_numbers_are_flushed_within_a_run_only(tmp_path):
    def flushes():
        return float(torch.tensor([1e-310], dtype=torch.float64) + 0.0) == 0.0

    seen = []
    assert not flushes()
    config = RunConfig(epochs=1, density=0.05)
    run(config, out=tmp_path, threads=1, on_epoch=lambda record: seen.append(flushes()))
    assert seen == [True]
    assert not flushes()


@pytest.mark.parametrize("method", ["dense", "dctps"])
def test_images_and_filters_are_channels_last(tmp_path, monkeypatch, method):
    seen = []
    convolve = torch.nn.functional.conv2d

    def watched(x, weight, *rest):
        seen.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
        return convolve(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    monkeypatch.setenv("DCTPS_BACKEND", "dense")
    environment_backend.cache_clear()
    try:
        config = RunConfig(model="lenet5", method=method, **QUICK | {"epochs": 1})
        summary = run(config, out=tmp_path / "run", threads=1)
        assert evaluate_run(tmp_path / "run", threads=1)["last"].accuracy == summary["last_test_accuracy"]
    finally:
        environment_backend.cache_clear()
    assert seen and all(seen)
