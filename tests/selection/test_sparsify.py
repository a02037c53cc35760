import copy

import pytest
import torch
from tests.support import oracles
from torch import nn
from torch.nn.utils import prune

import dctps
from dctps import DpSConv2d, DpSLinear, report, sparsify_
from dctps.selection.criteria.ranking import keep_largest


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10), nn.Linear(10, 5)
    )


X = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", ["zero", "dct", "sdct", "hadamard", "gaussian"])
@pytest.mark.parametrize("allocation", ["uniform", "epl", "epf", "erk", "narrow"])
def test_a_meta_network_becomes_a_real_one_that_trains(offset: str, allocation: str) -> None:
    with torch.device("meta"):
        model = network()
    assert sparsify_(model, 0.05, offset=offset, allocation=allocation) is model
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert report(model).nnz == round(0.05 * (216 + 320 + 50))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items() if "values" in name)


def test_supports_are_those_of_the_specified_draws_whatever_the_wrapper() -> None:
    with torch.device("meta"):
        model = sparsify_(network(), 0.05, seed=9)
        wrapped = sparsify_(nn.DataParallel(network()), 0.05, seed=9).module
    for name in ("0", "4", "5"):
        layer = model.get_submodule(name)
        size = layer.offset.out_features * layer.offset.in_features
        assert layer.support.tolist() == oracles.sample(f"9/{name}/support", layer.nnz, size)
        assert torch.equal(wrapped.get_submodule(name).support, layer.support)


def test_zero_offset_keeps_the_weights_there_and_draws_them_on_meta() -> None:
    dense = network()
    model = sparsify_(copy.deepcopy(dense), 0.1, offset="zero", seed=2)
    for name in ("0", "4", "5"):
        layer, original = model.get_submodule(name), dense.get_submodule(name)
        assert torch.equal(layer.values, original.weight.flatten()[layer.support])
        assert torch.equal(layer.bias, original.bias)
        assert layer.alpha is None
    with torch.device("meta"):
        drawn = sparsify_(network(), 0.1, offset="zero", seed=2)
    layer = drawn[4]
    assert torch.equal(layer.support, model[4].support)
    bound = 32**-0.5
    for position, value in list(zip(layer.support.tolist(), layer.values.tolist(), strict=True))[:5]:
        expected = bound * (2 * oracles.uniform("2/4/values", position) - 1)
        assert value == pytest.approx(expected, rel=1e-6)


def test_alpha_match_is_the_ratio_of_norms_and_zero_for_a_zero_layer() -> None:
    dense = network()
    nn.init.zeros_(dense[5].weight)
    model = sparsify_(copy.deepcopy(dense), 0.05, alpha="match")
    for name in ("0", "4"):
        layer = model.get_submodule(name)
        assert layer.to_dense().norm().item() == pytest.approx(
            dense.get_submodule(name).weight.norm().item(), rel=1e-5
        )
    assert model[5].alpha.item() == 0
    assert sparsify_(network(), 0.05, alpha=0.25)[4].alpha.item() == 0.25


def test_magnitude_ranks_globally_or_within_an_allocation() -> None:
    dense = network()
    everything = torch.cat([dense[i].weight.detach().abs().flatten() for i in (0, 4, 5)])
    threshold = everything.sort(descending=True).values[58]
    model = sparsify_(copy.deepcopy(dense), 0.1, offset="zero", criterion="magnitude")
    kept = torch.cat([model[i].values.detach().abs() for i in (0, 4, 5)])
    assert len(kept) == 59 and kept.min() == threshold
    within = sparsify_(copy.deepcopy(dense), 0.1, offset="zero", criterion="magnitude", allocation="epl")
    assert [within[i].nnz for i in (0, 4, 5)] == [20, 20, 19]
    assert within[4].values.abs().min() == dense[4].weight.abs().flatten().sort().values[-20]


def test_ties_go_to_the_earlier_position() -> None:
    scores = {"a": torch.tensor([1.0, 2, 1, 1]), "b": torch.tensor([[1.0, 3], [1, 0]])}
    kept = keep_largest(scores, 4)
    assert kept["a"].tolist() == [True, True, True, False]
    assert kept["b"].tolist() == [[False, True], [False, False]]
    within = keep_largest(scores, {"a": 2, "b": 3})
    assert within["a"].tolist() == [True, True, False, False]
    assert within["b"].tolist() == [[True, True], [True, False]]
    assert not keep_largest(scores, 0)["a"].any()


def test_a_users_own_criterion_sees_loss_and_batches() -> None:
    def gradient(model, layers, loss, batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            loss(model, batch).backward()
        return {name: layer.weight.grad.abs() for name, layer in layers.items()}

    dense = network()
    dense(X).square().sum().backward()
    best = dense[4].weight.grad.abs().flatten().argmax()
    model = sparsify_(
        network(), 0.05, criterion=gradient, loss=lambda model, x: model(x).square().sum(), batches=[X]
    )
    assert best in model[4].support
    with pytest.raises(ValueError, match="unknown criterion 'magnitud': did you mean 'magnitude'"):
        sparsify_(network(), 0.05, criterion="magnitud")


def test_masks_and_pruned_layers_are_brought_in() -> None:
    dense = network()
    masks = {name: torch.rand_like(dense.get_submodule(name).weight) < 0.2 for name in ("0", "4", "5")}
    model = sparsify_(copy.deepcopy(dense), offset="zero", criterion=masks)
    for name, mask in masks.items():
        assert torch.equal(model.get_submodule(name).to_dense(), dense.get_submodule(name).weight * mask)

    pruned = copy.deepcopy(dense)
    for i in (0, 4, 5):
        prune.random_unstructured(pruned[i], "weight", 0.7)
        prune.remove(pruned[i], "weight")
    pruned.eval()
    sparse = sparsify_(copy.deepcopy(pruned), offset="zero", criterion="nonzero")
    assert sum(layer.nnz for layer in (sparse[0], sparse[4], sparse[5])) < 200
    assert torch.allclose(sparse(X), pruned(X), atol=1e-6)
    one = DpSLinear.from_dense(pruned[5], offset="zero")
    assert torch.equal(one.to_dense(), pruned[5].weight)
    with pytest.raises(ValueError, match=r"missing \['4', '5'\], not layers \['7'\]"):
        sparsify_(copy.deepcopy(dense), criterion={"0": masks["0"], "7": masks["4"]})


def test_shared_layers_are_converted_once_and_counted_once() -> None:
    shared = nn.Linear(10, 10)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(10, 2))
    sparsify_(model, 0.1)
    assert model[0] is model[2] and isinstance(model[0], DpSLinear)
    assert report(model).weights == 120


def test_filter_already_converted_root_and_nothing_to_do() -> None:
    model = sparsify_(network(), 0.1, filter_fn=lambda module, name: name != "5")
    assert type(model[5]) is nn.Linear and isinstance(model[4], DpSLinear)
    first = model[4]
    sparsify_(model, 0.5)
    assert model[4] is first and model[5].nnz == 25  # the rest, on a budget of its own
    with pytest.raises(ValueError, match="Sequential has nothing to convert: 0 layers were left"):
        sparsify_(model, 0.5)
    with pytest.raises(ValueError, match="3 layers were left out by filter_fn, 0 are converted"):
        sparsify_(network(), 0.5, filter_fn=lambda module, name: False)
    root = sparsify_(nn.Conv2d(3, 4, 3), 0.5)
    assert isinstance(root, DpSConv2d) and root.offset.layer == ""


def test_what_cannot_be_made_from_meta_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), Scale())
        whole = network()
    with pytest.raises(ValueError, match=r"module '1' \(Scale\) is on the meta device and has no reset"):
        sparsify_(model, 0.5)
    assert type(model[0]) is nn.Linear and model[0].weight.is_meta
    with pytest.raises(ValueError, match="criterion 'magnitude' needs weights, and layer '0' is on the meta"):
        sparsify_(whole, 0.5, criterion="magnitude")
    with pytest.raises(ValueError, match="layer '0': its nonzeros as the support needs the layer's weights"):
        sparsify_(whole, criterion="nonzero")


def test_mode_frozenness_dtype_and_hooks_are_kept() -> None:
    dense = network().double().eval()
    dense[4].requires_grad_(False)
    calls: list[str] = []
    handle = dense[5].register_forward_hook(lambda *_: calls.append("hook"))
    model = sparsify_(dense, 0.1, convert_frozen=True)
    assert model[4].values.dtype == torch.float64 and not model[4].training
    assert not any(p.requires_grad for p in model[4].parameters())
    assert all(p.requires_grad for p in model[5].parameters())
    model(X.double())
    handle.remove()
    model(X.double())
    assert calls == ["hook"]


def test_public_names_are_there() -> None:
    for name in dctps.__all__:
        assert getattr(dctps, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dctps.nothing  # noqa: B018
