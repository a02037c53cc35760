"""Frozen layers are left alone unless asked for, and the report counts what trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dctps import report, sparsify_
from dctps.nn import DpSConv2d, DpSLinear
from dctps.selection.sparsify import count_prunable


def network() -> nn.Sequential:
    """Two pretrained parts that are to stay, and two that train."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Conv2d(8, 4, 1)),
        *(nn.BatchNorm2d(4), nn.Linear(4, 4)),
    )
    for part in (model[0], model[2]):
        part.requires_grad_(False)
    return model


@pytest.mark.parametrize("criterion", ["random", "magnitude"])
@pytest.mark.parametrize("offset", ["dct", "zero"])
def test_frozen_layers_keep_their_weights(offset: str, criterion: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparsify_(model, 0.1, offset=offset, criterion=criterion)
    assert type(model[0]) is nn.Conv2d and type(model[2]) is nn.MultiheadAttention
    assert type(model[1]) is DpSLinear and type(model[3]) is DpSConv2d
    for part in ("0", "2"):
        for name, tensor in model.get_submodule(part).state_dict().items():
            assert torch.equal(tensor, before[f"{part}.{name}"])
    found = report(model)
    reasons = {row.name: row.reason for row in found.rows if row.reason}
    assert reasons.keys() == {"0", "2"}
    assert all("frozen" in reason and "convert_frozen=True" in reason for reason in reasons.values())
    prunable = 64 + 32 + 16
    assert found.weights == prunable and found.nnz == round(0.1 * prunable) == found.training
    assert count_prunable(network()) == prunable


def test_frozen_layers_are_converted_where_asked() -> None:
    model = sparsify_(network(), 0.1, convert_frozen=True)
    assert type(model[0]) is DpSConv2d and not any(p.requires_grad for p in model[0].parameters())
    found = report(model)
    frozen = sum(model.get_submodule(name).nnz for name in ("0", "2.q_proj", "2.k_proj", "2.v_proj"))
    frozen += model.get_submodule("2.out_proj").nnz
    assert frozen > 0 and found.training == found.nnz - frozen == found.trainable["values"]
    assert f"{found.training:,} of {found.weights:,} weights train, {frozen:,} are frozen" in str(found)


def test_filter_fn_alone_does_not_ask_for_frozen_layers() -> None:
    model = sparsify_(network(), 0.1, filter_fn=lambda module, name: name != "5")
    assert type(model[0]) is nn.Conv2d and type(model[5]) is nn.Linear and type(model[1]) is DpSLinear


def test_attention_that_is_frozen_in_part_is_converted_in_part() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    model[0].in_proj_weight.requires_grad_(False)
    x = torch.randn(3, 2, 8)
    q = model[0].in_proj_weight[:8].clone()
    sparsify_(model, 0.5)
    assert type(model[0].q_proj) is nn.Linear and torch.equal(model[0].q_proj.weight, q)
    assert type(model[0].out_proj) is DpSLinear
    assert model[0](x, x, x)[0].shape == x.shape


def test_a_network_that_is_frozen_whole_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"2 are frozen \(convert_frozen=True converts those too\)"):
        sparsify_(model, 0.5)
    assert type(model[0]) is nn.Linear
    assert type(sparsify_(model[0], 0.5, convert_frozen=True)) is DpSLinear


def test_what_is_frozen_after_conversion_is_no_longer_counted() -> None:
    model = sparsify_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.25)
    model[0].requires_grad_(False)
    found = report(model)
    assert (found.nnz, found.training) == (32, 16)
    assert "converted   16 of 128 weights train, 16 are frozen (density 25.0000%)" in str(found)
    assert found.to_dict()["training"] == 16
