"""Criteria on W = alpha * D + S, and the shuffling of supports."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.support import naive_selection as naive
from tests.support import oracles
from torch import nn

from dctps import report, shuffle_, sparsify_
from dctps.selection.criteria import offset as on_offset


class Twice(nn.Module):
    """A layer that is used in two places, strides, padding of every kind, groups, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="reflect")
        self.shared = nn.Conv2d(6, 6, 3, padding="same", groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(6, 9, 1, bias=False)
        self.head = nn.Linear(9, 4)
        self.head.requires_grad_(False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = self.shared(F.relu(self.norm(self.shared(x))))
        return self.head(F.relu(self.point(x)).flatten(2).transpose(1, 2)).mean(1)


def dense_scores(model: nn.Module, criterion: str, data: list[tuple[torch.Tensor, torch.Tensor]]):
    """By a dense network that has W for its weights."""
    empty = sparsify_(
        copy.deepcopy(model), criterion="random", density=1.0, seed=0, alpha=0.7, convert_frozen=True
    )
    scores = {}
    dense = copy.deepcopy(model).train().requires_grad_(True)
    for name, layer in empty.named_modules():
        if hasattr(layer, "offset"):
            dense.get_submodule(name).weight.data = 0.7 * layer.offset.to_dense(dtype=torch.float64)
    sum(F.cross_entropy(dense(x), y) for x, y in data).div(len(data)).backward()
    for name, layer in empty.named_modules():
        if hasattr(layer, "offset"):
            w = dense.get_submodule(name).weight
            scores[name] = (w * w.grad if criterion == "offset-snip" else w.grad).abs().detach()
    return scores


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
@pytest.mark.parametrize("allocation", ["global", "epl"])
@pytest.mark.parametrize("criterion", ["offset-snip", "offset-gradient"])
def test_supports_are_those_of_the_dense_gradient(monkeypatch, criterion, allocation, block):
    monkeypatch.setattr(on_offset, "_BLOCK", block)
    data = naive.data(2, 3)
    scores = dense_scores(Twice(), criterion, data)
    assert min(float(s.max()) for s in scores.values()) > 0
    keep = 30
    total = sum(s.numel() for s in scores.values())
    if allocation == "epl":
        keep = dict.fromkeys(scores, 8) | {"stem": 7, "point": 7}
        keep = dict(zip(scores, [8, 8, 7, 7], strict=True))
    expected = naive.kept_of(scores, keep)
    model = Twice()
    before = {n: (p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()}
    stats = model.norm.running_mean.clone()
    sparsify_(
        model,
        30 / total,
        criterion=criterion,
        allocation=allocation,
        batches=data,
        alpha=0.7,
        convert_frozen=True,
    )
    for name, mask in expected.items():
        layer = model.get_submodule(name)
        assert layer.support.tolist() == mask.flatten().nonzero().flatten().tolist()
        assert not layer.values.any()
        assert layer.alpha.item() == pytest.approx(0.7)
        assert not layer._forward_hooks
    assert torch.equal(model.norm.running_mean, stats)
    assert (model.norm.weight.data_ptr(), True) == before["norm.weight"]


def test_what_cannot_be_scored_on_an_offset():
    data = naive.data(0, 1)
    model = Twice()
    with pytest.raises(ValueError, match=r"scores W = alpha \* D \+ S, which is 0 under the offset 'zero'"):
        sparsify_(model, 0.1, offset="zero", criterion="offset-snip", batches=data)
    with pytest.raises(ValueError, match=r"'offset-snip' cannot rank this network: all .* scores are zero"):
        sparsify_(model, 0.1, criterion="offset-snip", batches=data, alpha=0.0)
    with pytest.raises(ValueError, match="'offset-gradient' looks at data"):
        sparsify_(model, 0.1, criterion="offset-gradient")
    assert type(model.stem) is nn.Conv2d and not model.stem._forward_hooks
    root = sparsify_(
        nn.Linear(6, 4), 0.5, criterion="offset-gradient", batches=[(torch.randn(9, 6), torch.arange(9) % 4)]
    )
    assert root.nnz == 12


def test_shuffling_keeps_counts_and_takes_the_dense_values_there():
    dense = naive.Network(0)
    model = sparsify_(copy.deepcopy(dense), 0.1, offset="zero", criterion="magnitude")
    before = copy.deepcopy(model)
    assert shuffle_(model, dense, seed=5) is model
    moved = 0
    for name in naive.LAYERS:
        layer, old = model.get_submodule(name), before.get_submodule(name)
        size = math.prod(layer.offset.shape)
        assert layer.support.tolist() == oracles.sample(f"5/{name}/shuffle", old.nnz, size)
        assert torch.equal(layer.values, dense.get_submodule(name).weight.flatten()[layer.support])
        moved += int(old.nnz - torch.isin(layer.support, old.support).sum())
        assert torch.equal(layer.to_dense() != 0, layer.to_dense() == dense.get_submodule(name).weight)
    assert moved > 10
    with pytest.raises(ValueError, match="layer 'conv' has no offset, so its values .* pass as `dense`"):
        shuffle_(before)

    trained = sparsify_(naive.Network(0), 0.1)
    with torch.no_grad():
        trained.conv.values.copy_(torch.arange(trained.conv.nnz))
    values = trained.conv.values.clone()
    support = trained.conv.support.clone()
    shuffle_(trained, seed=1)
    assert torch.equal(trained.conv.values, values) and not torch.equal(trained.conv.support, support)


def test_a_shuffled_network_is_saved_with_its_positions(tmp_path):
    import dctps

    model = shuffle_(sparsify_(naive.Network(0).float(), 0.1))
    dctps.save_pretrained(model, tmp_path)
    again = dctps.load_pretrained_(naive.Network(1).float(), tmp_path)
    for name in naive.LAYERS:
        assert torch.equal(again.get_submodule(name).support, model.get_submodule(name).support)


def test_layers_left_with_nothing_are_reported():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight.div_(100)
    kept = sparsify_(copy.deepcopy(model), 0.2, offset="zero", criterion="magnitude")
    assert report(kept).empty == ["1"]
    assert "no signal passes 1 of the layers, which has neither weights nor an offset: 1" in str(report(kept))
    assert report(sparsify_(model, 0.2, offset="dct", criterion="magnitude")).empty == []
