"""The mean over the union of supports is the dense mean, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.small_networks import IMAGES, same_state, train, trained
from torch import nn

import dctps
from dctps import average_over_union


def network(seed, offset, nnz):
    """A layer of each kind, whose supports differ from seed to seed, and a norm."""
    draw = torch.Generator().manual_seed(seed)
    layers = [
        dctps.DpSConv2d(3, 4, 3, support=torch.randperm(108, generator=draw)[:nnz], offset=offset),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        dctps.DpSLinear(16, 5, support=torch.randperm(80, generator=draw)[:nnz], offset=offset, bias=False),
    ]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for tensor in [*model.parameters(), model[1].running_mean, model[1].running_var]:
            tensor.copy_(torch.rand(tensor.shape, generator=draw) - 0.5)
    return model


def dense(model):
    return [layer.to_dense().detach().double() for layer in (model[0], model[3])]


@given(
    st.sampled_from(["zero", "dct", "sdct"]),
    st.integers(0, 12),
    st.lists(st.floats(0.01, 9), min_size=1, max_size=4),
)
def test_it_is_the_dense_mean(offset, nnz, weights):
    models = [network(seed, offset, nnz + seed) for seed in range(len(weights))]
    before = [dense(model) for model in models]
    mean = average_over_union(models, weights)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    for i, ours in enumerate(dense(mean)):
        expected = sum(w * d[i] for w, d in zip(shares, before, strict=True))
        assert torch.allclose(ours, expected, atol=1e-6)
    for i in (0, 3):
        union = torch.cat([model[i].support for model in models]).unique()
        assert torch.equal(mean[i].support, union)
    var = sum(w * m[1].running_var.double() for w, m in zip(shares, models, strict=True))
    assert torch.allclose(mean[1].running_var.double(), var, atol=1e-6)
    assert all(
        torch.equal(a, b)
        for m, d in zip(models, before, strict=True)
        for a, b in zip(dense(m), d, strict=True)
    )


def test_cut_back_to_nnz_the_largest_stay():
    models = [network(seed, "dct", 9) for seed in range(3)]
    whole, cut = average_over_union(models), average_over_union(models, keep_nnz=True)
    for i in (0, 3):
        order = whole[i].values.abs().argsort(descending=True)[:9]
        assert torch.equal(cut[i].support, whole[i].support[order.sort().values])
        assert torch.equal(cut[i].values, whole[i].values[order.sort().values])


def test_networks_that_rigl_has_moved_go_on_from_their_mean():
    models = []
    for client in range(3):
        model = trained()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        rigl = dctps.RigL(model, optimizer, update_interval=1, end=9)
        for step in range(3):
            optimizer.zero_grad()
            labels = (torch.arange(5) + client + step) % 3
            nn.functional.cross_entropy(model(IMAGES + client), labels).backward()
            optimizer.step()
            rigl.step()
        models.append(model)
    assert not torch.equal(models[0][3].support, models[1][3].support)
    mean = average_over_union(models, keep_nnz=True)
    assert [mean[i].nnz for i in (0, 3, 5)] == [models[0][i].nnz for i in (0, 3, 5)]
    again = dctps.load_trainable_state_(trained(), dctps.trainable_state(mean, True, supports=True))
    assert same_state(again[3], mean[3])
    train(mean)


def test_what_has_no_mean_is_refused():
    models = [network(0, "dct", 4), network(1, "dct", 4)]
    with pytest.raises(ValueError, match="one weight for each network: 1 for 2"):
        average_over_union(models, [1.0])
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        average_over_union(models, [0, 0])
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        average_over_union(models, [2, float("nan")])
    with pytest.raises(ValueError, match="0 for 0"):
        average_over_union([])
    with pytest.raises(ValueError, match="has the offset .* build all from one seed"):
        average_over_union([models[0], network(1, "sdct", 4)])
    with pytest.raises(ValueError, match="different layers"):
        average_over_union([models[0], models[1][:3]])
    with pytest.raises(ValueError, match="another shape"):
        average_over_union([nn.Linear(3, 2), nn.Linear(2, 2)])
