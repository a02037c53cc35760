"""The search for the intrinsic dimension, and runs on a hyperplane."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.faults import TINY, outcome, stop_after
from torch import nn

from dctps.cli import main
from dctps.experiments import RunConfig
from dctps.experiments.intrinsic import intrinsic_dimension, search_smallest
from dctps.experiments.run import evaluate_run, run
from dctps.models import register_model

HYPERPLANE = replace(TINY, method="hyperplane")
DIGITS = RunConfig(method="hyperplane", epochs=2, batch_size=32, augment=False, projection="fastfood")


@given(largest=st.integers(1, 3000), data=st.data(), ratio=st.sampled_from([1.0001, 1.1, 2.0, 10.0]))
def test_the_search_finds_the_threshold(largest, data, ratio):
    threshold = data.draw(st.integers(1, largest + 1))
    first = data.draw(st.integers(1, largest))
    asked = []

    def reaches(d):
        assert 1 <= d <= largest
        asked.append(d)
        return d >= threshold

    found, too_small = search_smallest(reaches, first, largest, ratio)
    assert len(asked) == len(set(asked)) <= 30
    assert (found is None) == (threshold > largest)
    assert (too_small is None) == (threshold == 1)
    if found is None:
        assert too_small == largest
    elif too_small is None:
        assert found == 1
    else:
        assert too_small < threshold <= found <= max(ratio * too_small, too_small + 1)
        assert {found, too_small} <= set(asked)


@pytest.mark.parametrize("projection", ["dense", "sparse", "fastfood"])
def test_a_run_on_a_hyperplane_goes_on_where_it_stopped(tmp_path, projection):
    config = replace(HYPERPLANE, projection=projection)
    summary = run(config, out=tmp_path / "whole", threads=1)
    weights = 4 * 9 + 144 * 3
    assert summary["report"]["trainable"]["dimensions"] == round(0.2 * weights)
    assert sum(summary["report"]["trainable"].values()) == round(0.2 * weights)
    stop_after(2, tmp_path / "run", config=config)
    stop_after(3, tmp_path / "run", config=config)
    run(config, out=tmp_path / "run", threads=1)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    found = evaluate_run(tmp_path / "run", threads=1)
    assert found["last"].accuracy == summary["last_test_accuracy"]
    assert found["best"].accuracy == summary["best_test_accuracy"]


def test_it_starts_where_the_dense_network_does(tmp_path):
    """An epoch at a rate of nearly nothing: both have the loss of the same theta_0."""
    losses = [
        run(replace(TINY, method=method, lr=1e-12, epochs=1), out=tmp_path / method, threads=1)
        and json.loads((tmp_path / method / "metrics.jsonl").read_text())["train_loss"]
        for method in ("hyperplane", "dense")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_digits_are_learned(tmp_path):
    config = replace(DIGITS, density=0.02, epochs=3)
    assert run(config, out=tmp_path / "run", threads=1)["last_test_accuracy"] > 0.75


def test_intrinsic_dimension_of_the_digits_from_the_command_line(tmp_path, capfd):
    argv = ["intrinsic", "--epochs", "2", "--batch-size", "32", "--no-augment", "--projection", "fastfood"]
    argv += ["--threads", "1", "--ratio", "2", "--share", "0.8", "--out", str(tmp_path / "search")]
    assert main(argv) == 0
    printed = capfd.readouterr().out
    found = json.loads((tmp_path / "search" / "intrinsic.json").read_text())
    tried = {entry["dimensions"]: entry["accuracy"] for entry in found["tried"]}
    assert found["weights"] == 61_470
    assert found["target"] == pytest.approx(0.8 * found["dense_accuracy"])
    d, below = found["intrinsic_dimension"], found["too_small"]
    assert tried[d] >= found["target"] > tried[below]
    assert below < d <= 2 * below
    for dimensions, accuracy in tried.items():
        summary = json.loads((tmp_path / "search" / f"d{dimensions}-seed0" / "summary.json").read_text())
        assert summary["report"]["trainable"]["dimensions"] == dimensions
        assert summary["best_val_accuracy"] == accuracy
    assert f"d = {d:,} of 61,470 weights reaches" in printed

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").rglob("model.safetensors")}
    again = intrinsic_dimension(
        DIGITS, out=tmp_path / "search", share=0.8, ratio=2.0, threads=1, on_accuracy=lambda *_: None
    )
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_target_out_of_reach_and_several_seeds(tmp_path):
    found = intrinsic_dimension(
        replace(HYPERPLANE, epochs=1), out=tmp_path, dense_accuracy=2.0, seeds=(1, 2), ratio=100.0, threads=1
    )
    assert found["intrinsic_dimension"] is None
    assert found["too_small"] == found["weights"] == 468
    assert [entry["dimensions"] for entry in found["tried"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 468]
    accuracy = [
        json.loads((tmp_path / f"d8-seed{seed}" / "summary.json").read_text())["best_val_accuracy"]
        for seed in (1, 2)
    ]
    assert found["tried"][3]["accuracy"] == pytest.approx(sum(accuracy) / 2)
    assert not (tmp_path / "dense-seed1").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method dctps", "the method 'dctps' has no dimensions to search: use hyperplane"),
        ("--share 0", "share must be in (0, 1], got 0.0"),
        ("--ratio 1", "ratio must be above 1, got 1.0"),
        ("--projection fastfod", "did you mean 'fastfood'"),
        ("--projection auto --density 2", "--density 2.0 would have no effect: the search finds it"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capfd, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(["intrinsic", "--dense-accuracy", "0.9", *flags.split()]) == 2
    assert message in capfd.readouterr().err


@register_model("by-pixels")
def by_pixels(classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, classes))


def test_weights_are_counted_for_the_images_of_the_run(tmp_path):
    config = replace(HYPERPLANE, model="by-pixels", epochs=1)
    found = intrinsic_dimension(config, out=tmp_path, dense_accuracy=0.0, threads=1)
    assert found["weights"] == 8 * 8 * 3
    assert (found["intrinsic_dimension"], found["too_small"]) == (1, None)
