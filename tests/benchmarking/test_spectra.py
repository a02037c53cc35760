"""Spectra of Jacobians against torch's own Jacobian and singular values, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dctps
from dctps.benchmarking.initial import (
    INITIAL,
    TRAINED,
    examine,
    freeze_statistics_,
    jacobian_blocks,
    read_examined,
    spectrum,
)
from dctps.experiments.config import RunConfig
from dctps.experiments.run import run


def network(width, classes, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 9, classes)
    ).double()


@given(n=st.integers(1, 4), width=st.integers(1, 6), classes=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_spectrum_is_that_of_the_whole_batchs_jacobian(n, width, classes, seed):
    model = network(width, classes, seed)
    images = torch.randn(n + 3, 2, 5, 5, dtype=torch.float64)
    freeze_statistics_(model, images)
    batch = images[:n]
    whole = torch.autograd.functional.jacobian(model, batch).reshape(n * classes, -1)
    oracle = torch.linalg.svdvals(whole)
    found = spectrum(model, batch)
    size = min(len(oracle), len(found))
    torch.testing.assert_close(found[:size], oracle[:size], rtol=1e-9, atol=1e-11)
    assert len(found) == n * min(classes, 50)
    blocks = torch.stack([whole[i * classes : (i + 1) * classes, i * 50 : i * 50 + 50] for i in range(n)])
    torch.testing.assert_close(jacobian_blocks(model, batch), blocks, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("offset", ["dct", "sdct", "zero"])
def test_sparse_networks_are_no_other_case(offset):
    model = dctps.sparsify_(network(5, 4, 0), 0.3, offset=offset).double()
    images = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    freeze_statistics_(model, images)
    dense = dctps.merge_(torch.nn.Sequential(*model))
    oracle = torch.autograd.functional.jacobian(dense, images).reshape(24, -1)
    torch.testing.assert_close(spectrum(model, images), torch.linalg.svdvals(oracle), rtol=1e-7, atol=1e-9)


def test_statistics_are_those_of_the_batch_and_nothing_else_changes():
    model = network(3, 2, 0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    images = torch.randn(7, 2, 5, 5, dtype=torch.float64)
    freeze_statistics_(model, images)
    maps = model[0](images)
    torch.testing.assert_close(model[1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, maps.var((0, 2, 3)))
    assert model[1].momentum == 0.1 and not model.training
    spectrum(model, images)
    assert all(p.requires_grad and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_dead_layer_is_exactly_zero_and_an_overflow_is_an_error():
    model = network(3, 2, 0)
    torch.nn.init.zeros_(model[4].weight)
    images = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    assert torch.equal(
        spectrum(freeze_statistics_(model, images), images), torch.zeros(6, dtype=torch.float64)
    )
    torch.nn.init.constant_(model[4].weight, float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        spectrum(model, images)


def test_a_run_is_examined_before_and_after_and_only_once(tmp_path):
    config = RunConfig(method="snip", density=0.05, epochs=1, train_images=200)
    examine(config, tmp_path / "a", threads=1)
    first = read_examined(tmp_path / "a")
    assert read_examined(tmp_path / "a", TRAINED) is None
    assert sum(layer["nnz"] for layer in first["layers"]) == round(0.05 * 61470)
    assert len(first["spectrum"]) == 16 * 10

    summary = run(config, out=tmp_path / "a", threads=1)
    rows = [(row["name"], row["nnz"]) for row in summary["report"]["rows"]]
    assert [(layer["name"], layer["nnz"]) for layer in first["layers"]] == rows
    stamp = (tmp_path / "a" / INITIAL).stat().st_mtime_ns
    examine(config, tmp_path / "a", threads=1)
    assert (tmp_path / "a" / INITIAL).stat().st_mtime_ns == stamp
    assert read_examined(tmp_path / "a", TRAINED)["spectrum"] != first["spectrum"]

    run(config, out=tmp_path / "b", threads=1)
    examine(config, tmp_path / "b", threads=1)
    assert read_examined(tmp_path / "b") == first
    assert read_examined(tmp_path / "b", TRAINED) == read_examined(tmp_path / "a", TRAINED)
