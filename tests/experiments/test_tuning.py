"""Paths that were measured: recorded with the run, reused, repeated bit for bit. Never how fast they are."""

import json
from dataclasses import replace

import pytest
import torch
from tests.support.faults import TINY, outcome, stop_after, train_tiny
from torch import nn

import dctps
from dctps.data import Description
from dctps.experiments.backends import apply_backends_, read_backends
from dctps.experiments.config import resolve
from dctps.experiments.network import explain_training
from dctps.experiments.run import evaluate_run, explain_run, run
from dctps.experiments.trainer import Trainer
from dctps.kernels import variant
from dctps.product.machine import forced_machine, use_machine
from dctps.product.rule import paths_of
from dctps.training import Processes


def test_measured_backends_are_recorded_reused_and_repeat(tmp_path):
    summary = run(TINY, out=tmp_path / "first", threads=1, tune=True)
    record = read_backends(tmp_path / "first" / "backends.json")
    assert summary["backends"].startswith("measured ")
    assert summary["kernels"] == record["kernels"] == variant()
    assert summary["backend"] == "auto"
    assert set(record["layers"]) == {"0", "5"}
    for layer in record["layers"].values():
        times = layer["milliseconds"]
        assert times[layer["backend"]] == min(times.values()) > 0
    rows = explain_run(tmp_path / "first").rows
    assert [(row.name, row.chosen_by) for row in rows] == [("0", "layer"), ("5", "layer")]
    for row in rows:
        assert row.path in paths_of(record["layers"][row.name]["backend"])

    run(TINY, out=tmp_path / "second", threads=1, backends=tmp_path / "first" / "backends.json")
    assert outcome(tmp_path / "second") == outcome(tmp_path / "first")
    # Cut short and continued, with the flag or without: the record in the folder holds.
    stop_after(2, tmp_path / "third", backends=tmp_path / "first" / "backends.json")
    notes = []
    run(TINY, out=tmp_path / "third", threads=1, on_note=notes.append)
    assert len(notes) == 1
    assert outcome(tmp_path / "third") == outcome(tmp_path / "first")
    assert evaluate_run(tmp_path / "first", threads=1)["last"].accuracy == summary["last_test_accuracy"]


def test_paths_are_measured_and_explained_on_images_as_in_training(monkeypatch):
    """Those of channels last are others than those of NCHW."""
    seen = []

    def watched(function):
        def watching(model, images, **rest):
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
            return function(model, images, **rest)

        return watching

    monkeypatch.setattr("dctps.experiments.trainer.tune_", watched(dctps.tune_))
    monkeypatch.setattr("dctps.explain", watched(dctps.explain))
    config, model = resolve(TINY), dctps.sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.2)
    Trainer(config, model, 48, torch.device("cpu"), Processes()).tune(torch.zeros(16, 3, 8, 8).byte())
    explain_training(config, model, Description(3, 3, 8))
    assert seen == [True, True]


def test_measuring_changes_no_random_number(tmp_path):
    """Where all paths that were chosen are dense, a run is the one that is told so."""
    run(TINY, out=tmp_path / "first", threads=1, tune=True)
    record = json.loads((tmp_path / "first" / "backends.json").read_text())
    for layer in record["layers"].values():
        layer["backend"] = "dense"
    (tmp_path / "dense.json").write_text(json.dumps(record))
    run(TINY, out=tmp_path / "dense", threads=1, backends=tmp_path / "dense.json")
    model, data = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("dense", "first")]
    tuned = read_backends(tmp_path / "first" / "backends.json")["layers"]
    assert (model == data) or any(layer["backend"] != "dense" for layer in tuned.values())


def test_measuring_in_the_middle_of_a_run_is_said(tmp_path):
    stop_after(2, tmp_path / "run")
    notes = []
    summary = run(TINY, out=tmp_path / "run", threads=1, tune=True, on_note=notes.append)
    assert "backends rule before and measured" in notes[1]
    assert summary["earlier_environments"][0]["backends"] == "rule"


def test_kernels_of_another_variant_are_said(tmp_path, monkeypatch):
    stop_after(2, tmp_path / "run")
    monkeypatch.setattr("dctps.experiments.settings.variant", lambda: "other")
    notes = []
    summary = run(TINY, out=tmp_path / "run", threads=1, on_note=notes.append)
    assert f"kernels {variant()} before and other now" in notes[1]
    assert summary["kernels"] == "other"


def test_what_cannot_be_used(tmp_path):
    (tmp_path / "not.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not\.json cannot be used .* give the backends\.json"):
        train_tiny(tmp_path / "run", backends=tmp_path / "not.json")
    with pytest.raises(ValueError, match="leave one of the two out"):
        train_tiny(tmp_path / "run", tune=True, backends=tmp_path / "not.json")
    with pytest.raises(ValueError, match="imp has another network at each level"):
        train_tiny(tmp_path / "run", replace(TINY, method="imp", levels=2), tune=True)
    assert not (tmp_path / "run").exists()
    other = {"format": 1, "layers": {"9": {"backend": "dense"}}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="not of this network .*no DpS layer '9'"):
        train_tiny(tmp_path / "run", backends=tmp_path / "other.json")

    train_tiny(tmp_path / "tuned", tune=True)
    record = json.loads((tmp_path / "tuned" / "backends.json").read_text())
    record["layers"]["5"]["backend"] = "transform"
    (tmp_path / "other.json").write_text(json.dumps(record))
    (tmp_path / "tuned" / "summary.json").unlink()
    with pytest.raises(ValueError, match="has other backends .* leave --backends out"):
        train_tiny(tmp_path / "tuned", backends=tmp_path / "other.json")


def test_a_native_record_leaves_a_place_without_kernels_to_the_rule():
    model = dctps.sparsify_(nn.Sequential(nn.Linear(64, 64)), 0.1)
    record = {"format": 1, "layers": {"0": {"backend": "native"}}}
    assert apply_backends_(model, record, torch.device("cuda")) == "rule"
    assert model[0].backend == "auto"


def test_a_run_goes_on_with_the_profile_that_it_recorded(tmp_path):
    """Choices of paths repeat on another machine, whose own profile may choose otherwise."""
    try:
        use_machine("cuda")  # as if this machine were another: there every path is `dense`
        stop_after(2, tmp_path / "run")
        whole = run(TINY, out=tmp_path / "whole", threads=1)
    finally:
        use_machine(None)
    notes = []
    summary = run(TINY, out=tmp_path / "run", threads=1, on_note=notes.append)
    assert len(notes) == 1
    assert summary["profile"] == whole["profile"] and summary["profile"].startswith("cuda ")
    assert forced_machine() is None
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
