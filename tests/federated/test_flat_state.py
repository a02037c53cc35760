"""Flat states: what goes out comes back bit for bit, and what does not fit changes nothing."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.layers import OFFSETS
from tests.support.small_networks import IMAGES, same_state, train, trained
from torch import nn

import dctps
from dctps import load_trainable_state_, trainable_state
from dctps.stacks import Stack

LAYERS = {
    "linear": lambda **o: dctps.DpSLinear(7, 5, **o),
    "conv1d": lambda **o: dctps.DpSConv1d(4, 6, 3, groups=2, **o),
    "conv2d": lambda **o: dctps.DpSConv2d(4, 6, 3, bias=False, **o),
}


def stir(model, seed=1):
    """Every floating-point parameter and running statistic is drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.1)
    return model


def returns(model, **options):
    """Whether a stirred network is itself again once its former state is loaded."""
    before, state = copy.deepcopy(model), trainable_state(model, **options)
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(7)
    load_trainable_state_(model, state)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(t.dim() == 1 and t.is_floating_point() for t in trainable_state(model).values())
    return same_state(before, model)


@given(
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(OFFSETS),
    st.integers(0, 20),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_layer_returns(kind, offset, nnz, dtype, alpha_trains, supports, joined):
    layer = LAYERS[kind](offset=offset, nnz=nnz, dtype=dtype, alpha_trainable=alpha_trains)
    stir(layer)
    state = trainable_state(layer)
    expected = {
        "values": nnz,
        "alpha": int(offset != "zero" and alpha_trains),
        "bias": 5 if kind == "linear" else 6,
    }
    if kind == "conv2d":
        del expected["bias"]
    assert {k: len(t) for k, t in state.items()} == {k: n for k, n in expected.items() if n}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(tensor.dtype == wide for tensor in state.values())
    assert returns(layer, supports=supports, joined=joined)


class Tied(nn.Module):
    """Two linear layers with one bias, an embedding, a norm of each sort and an attention."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.bias = self.one.bias
        self.words = nn.Embedding(5, 6)
        self.norms = nn.ModuleList([nn.BatchNorm1d(6), nn.LayerNorm(6), nn.GroupNorm(2, 6)])
        self.attention = nn.MultiheadAttention(6, 2)
        self.again = self.one


@pytest.mark.parametrize("statistics", [False, True])
def test_all_kinds_as_one_tensor(statistics):
    source, target = stir(trained(), 1), stir(trained(), 2)
    apart = trainable_state(source, statistics)
    state = trainable_state(source, statistics, joined=True)
    assert torch.equal(state["numbers"], torch.cat(list(apart.values())))
    load_trainable_state_(target, state)
    assert all(torch.equal(apart[k], t) for k, t in trainable_state(target, statistics).items())
    with pytest.raises(ValueError, match=r"'numbers' has the shape \(3,\): this network's is \(\d+,\)"):
        load_trainable_state_(target, {"numbers": torch.ones(3)})
    with pytest.raises(ValueError, match="'alpha' holds nan at 1"):
        load_trainable_state_(
            target,
            {"numbers": torch.where(state["numbers"] == apart["alpha"][1], torch.nan, state["numbers"])},
        )


def test_values_reach_a_network_without_any():
    dense, empty = (dctps.sparsify_(nn.Sequential(nn.Linear(6, 4)), d) for d in (0.5, 0.0))
    state = trainable_state(stir(dense), supports=True)
    assert torch.equal(load_trainable_state_(empty, state)[0].to_dense(), dense[0].to_dense())
    assert empty[0].values.requires_grad
    none = dctps.sparsify_(nn.Sequential(nn.Linear(6, 4)), 0.0)
    load_trainable_state_(empty, trainable_state(none, supports=True))
    assert empty[0].nnz == 0 and returns(empty, supports=True)


@pytest.mark.parametrize("convert", [False, True])
def test_tied_parameters_go_once(convert):
    model = Tied()
    model = stir(dctps.sparsify_(model, 0.3) if convert else model)
    counts = {kind: len(tensor) for kind, tensor in trainable_state(model).items()}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts == {kind: n for kind, n in dctps.report(model).trainable.items() if n}
    assert returns(model) and returns(model, statistics=True)


def test_statistics_are_floats_and_come_back():
    source, target = stir(trained(), 1), stir(trained(), 2)
    norm, counter = target[1], int(target[1].num_batches_tracked)
    state = trainable_state(source, statistics=True)
    assert len(state["statistics"]) == 2 * norm.num_features
    load_trainable_state_(target, state)
    assert torch.equal(norm.running_var, source[1].running_var)
    assert norm.num_batches_tracked == counter
    assert "statistics" not in trainable_state(source)


def test_frozen_parameters_stay_at_home():
    model = stir(trained())
    model[0].values.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    assert len(trainable_state(model)["values"]) == model[3].nnz + model[5].nnz
    kept = model[0].values.clone()
    state = {kind: torch.zeros_like(tensor) for kind, tensor in trainable_state(model).items()}
    load_trainable_state_(model, state)
    assert torch.equal(model[0].values, kept) and not model[3].values.any() and model[1].weight.all()


def test_a_hyperplane_and_a_fused_network():
    plane = dctps.project_(nn.Sequential(nn.Linear(4, 3)), 5)
    assert set(trainable_state(plane)) == {"dimensions"} and returns(stir(plane))
    fused = dctps.fuse_(stir(trained()))
    assert returns(fused, statistics=True)
    plain = load_trainable_state_(stir(trained(), 2), trainable_state(fused, True))
    assert torch.equal(plain(IMAGES), dctps.unfuse_(fused)(IMAGES))


def test_a_stack_sees_what_was_loaded():
    def network(seed):
        layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        return dctps.sparsify_(nn.Sequential(*layers), 0.3, seed=seed)

    models, labels = [network(0), network(1)], torch.arange(len(IMAGES)) % 3
    stack = Stack(models)
    stack.step(IMAGES, labels)
    for model in models:
        load_trainable_state_(model, {k: t + 0.25 for k, t in trainable_state(model).items()})
    losses = stack.step(IMAGES, labels).loss / len(labels)
    for loss, model in zip(losses, models, strict=True):
        assert nn.functional.cross_entropy(model(IMAGES), labels).item() == pytest.approx(
            float(loss), rel=1e-4
        )


def test_the_mean_of_states_is_the_mean_network():
    models = [stir(trained(), seed) for seed in (1, 2, 3)]
    states = [trainable_state(model, True) for model in models]
    mean = {kind: torch.stack([s[kind] for s in states]).mean(0) for kind in states[0]}
    merged = load_trainable_state_(trained(), mean)
    for ours, *theirs in zip(merged.modules(), *(m.modules() for m in models), strict=True):
        if isinstance(ours, dctps.nn.DpSLayer):
            dense = torch.stack([t.to_dense().double() for t in theirs]).mean(0)
            assert torch.allclose(ours.to_dense().double(), dense, atol=1e-6)


def test_supports_that_moved_come_back():
    source, target = stir(trained()), stir(trained(), 2)
    optimizer = torch.optim.SGD(source.parameters(), 0.1)
    dsr = dctps.DSR(source, optimizer, update_interval=1, drop_fraction=0.3, end=99)
    for step in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(source(IMAGES), (torch.arange(5) + step) % 3).backward()
        optimizer.step()
        dsr.step()
    assert source[5].nnz != target[5].nnz or source[0].nnz != target[0].nnz
    load_trainable_state_(target, trainable_state(source, True, supports=True))
    for a, b in zip(source.modules(), target.modules(), strict=True):
        if isinstance(a, dctps.nn.DpSLayer):
            assert torch.equal(a.support, b.support) and torch.equal(a.to_dense(), b.to_dense())
    train(target)  # its state is sound


def broken(change):
    model = stir(trained())
    state = trainable_state(model, True, supports=True)
    change(state)
    return model, state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("alpha"), "lacks 'alpha'"),
        (lambda s: s.update(theta=torch.ones(1)), "has 'theta', which this network does not train"),
        (lambda s: s.update(values=s["values"][1:]), r"'values' has the shape \(\d+,\): this network's is"),
        (
            lambda s: s.update(norm=s["norm"].double()),
            "'norm' is of torch.float64: it must be of torch.float32",
        ),
        (lambda s: s.update(bias=s["bias"].numpy()), "'bias' is a ndarray: give a tensor"),
        (lambda s: s["bias"].__setitem__(2, float("nan")), "'bias' holds nan at 2"),
        (lambda s: s["statistics"].__setitem__(0, float("inf")), "'statistics' holds inf at 0"),
        (lambda s: s.pop("nnz"), "lacks 'nnz'"),
        (lambda s: s["nnz"].__setitem__(0, -1), "'nnz' holds -1"),
        (lambda s: s["nnz"].add_(1), "'support' has the shape"),
        (lambda s: s["support"].__setitem__(0, 10**6), "'support' of layer '0': positions must be in 0..71"),
        (
            lambda s: s["support"].__setitem__(0, int(s["support"][1])),
            "'support' of layer '0'.*more than once",
        ),
        (lambda s: s.update(support=s["support"].float()), "'support' is of torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line_and_changes_nothing(change, message):
    model, state = broken(change)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message) as caught:
        load_trainable_state_(model, state)
    assert "\n" not in str(caught.value)
    assert same_state(before, model)


def test_a_number_that_half_precision_cannot_hold_is_refused():
    layer = stir(dctps.DpSLinear(7, 5, nnz=4, dtype=torch.float16))
    state = trainable_state(layer)
    state["values"][3] = 1e6
    with pytest.raises(ValueError, match=r"'values' holds 1000000.0 at 3, which no torch.float16 number"):
        load_trainable_state_(layer, state)


def test_what_has_no_flat_state_is_refused():
    with torch.device("meta"):
        meta = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        trainable_state(meta)
    with pytest.raises(ValueError, match="'0.weight' is lazy"):
        trainable_state(nn.Sequential(nn.LazyLinear(2)))
    one, two = (dctps.DpSLinear(4, 4, nnz=3) for _ in range(2))
    two.values = one.values
    with pytest.raises(ValueError, match="two layers share their values"):
        trainable_state(nn.Sequential(one, two), supports=True)
