import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dctps import report, save_pretrained, sparsify_


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10), nn.Linear(10, 2)
    )


def test_counts_of_a_converted_network(tmp_path: Path) -> None:
    model = sparsify_(network(), 0.1, filter_fn=lambda module, name: name != "4")
    found = report(model)
    assert (found.weights, found.nnz) == (216 + 80, 30)
    assert found.density == pytest.approx(30 / 296)
    assert found.trainable == {"values": 30, "alpha": 2, "dense": 20, "bias": 20, "norm": 16, "other": 0}
    floats = 30 + 2 + 20 + 20 + 16 + 16  # the last are running statistics
    # supports, BatchNorm's step counter, and what names offset and support
    assert found.memory_bytes == 4 * floats + 8 * (30 + 1) + 2 * 256
    assert [row.name for row in found.rows] == ["0", "3", "4"]
    assert [row.kind for row in found.rows] == ["DpSConv2d", "DpSLinear", "Linear"]
    save_pretrained(model, tmp_path)
    assert found.disk_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert json.loads(json.dumps(found.to_dict()))["nnz"] == 30


def test_a_dense_network_and_a_meta_one() -> None:
    dense = report(network())
    assert (dense.weights, dense.nnz, dense.density) == (0, 0, 1.0)
    assert dense.trainable["dense"] == 216 + 80 + 20
    with torch.device("meta"):
        meta = report(network())
    assert meta.trainable == dense.trainable and meta.memory_bytes == dense.memory_bytes


def test_frozen_and_shared_parameters() -> None:
    shared = nn.Linear(4, 4)
    model = sparsify_(nn.Sequential(shared, shared), 0.5, alpha_trainable=False)
    found = report(model)
    assert (found.weights, found.nnz) == (16, 8)
    assert found.trainable["alpha"] == 0 and found.trainable["values"] == 8


def test_text_has_a_line_for_each_layer_and_totals() -> None:
    text = str(report(sparsify_(network(), 0.1)))
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["layer", "kind", "shape", "weights"]
    assert any("8x3x3x3" in line and "216" in line for line in lines)
    assert "of 316 weights train" in text


def test_seeded_offsets_count_what_they_hold() -> None:
    model = sparsify_(nn.Sequential(nn.Linear(64, 32)), 0.1, offset="sdct")
    before = report(model).memory_bytes
    model(torch.zeros(1, 64))
    assert report(model).memory_bytes == before + 4 * 32


def test_a_network_that_no_file_can_hold_is_counted_all_the_same() -> None:
    found = report(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)))
    assert found.disk_bytes is None and found.trainable["dense"] == 4
    assert "save_pretrained cannot hold this network" in str(found)
