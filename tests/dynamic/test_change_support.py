"""A support's change carries values and slots along, on dense arrays and for every optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps import DpSLinear, sparsify_
from dctps.dynamic import change_support_, take_sizes_

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
}


def integers(numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def trained(name, layer, steps=2):
    optimizer = OPTIMIZERS[name](layer.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(3, layer.in_features)).square().sum().backward()
        optimizer.step()
    return optimizer


def on_dense(layer, optimizer):
    """Everything with a number for each value, as dense arrays."""
    state = optimizer.state[layer.values]
    found = {name: t for name, t in state.items() if t is not None and t.shape == layer.values.shape}
    found |= {"values": layer.values.detach(), "gradient": layer.values.grad}
    dense = {}
    for name, tensor in found.items():
        dense[name] = torch.zeros(layer.offset.out_features * layer.offset.in_features)
        dense[name][layer.support] = tensor.float()
    return dense


@given(st.data(), st.sampled_from(sorted(OPTIMIZERS)))
def test_numbers_stay_with_their_positions(data, name):
    n, m = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    nnz = data.draw(st.integers(2 if n * m > 1 else 1, n * m))
    layer = DpSLinear(n, m, nnz=nnz)
    optimizer = trained(name, layer)
    before = on_dense(layer, optimizer)
    steps = {k: v.clone() for k, v in optimizer.state[layer.values].items() if v is not None and not v.dim()}
    dropped = data.draw(st.lists(st.sampled_from(layer.support.tolist()), unique=True))
    free = sorted(set(range(n * m)) - set(layer.support.tolist()) | set(dropped))
    grown = data.draw(st.lists(st.sampled_from(free), unique=True) if free else st.just([]))
    if len(layer.support) - len(dropped) + len(grown) < 2:
        return  # torch's scalars are then no longer to be told from slots by this test's own eyes
    same = len(dropped) == len(grown)
    parameter = layer.values
    at = layer.support.data_ptr(), layer.values.data_ptr()

    expected = sorted(set(layer.support.tolist()) - set(dropped) | set(grown))
    change_support_(layer, integers(dropped), integers(grown), optimizer)
    assert layer.support.tolist() == expected
    assert layer.nnz == nnz - len(dropped) + len(grown) == len(layer.support)
    assert layer.values is parameter
    assert not same or at == (layer.support.data_ptr(), layer.values.data_ptr())
    for key, dense in on_dense(layer, optimizer).items():
        before[key][dropped] = 0
        before[key][grown] = 0
        assert torch.equal(dense, before[key]), key
    for key, number in steps.items():
        assert torch.equal(optimizer.state[layer.values][key], number)


def test_another_size_trains_on_while_the_old_graph_is_alive():
    layer = DpSLinear(6, 5, nnz=4)
    optimizer = OPTIMIZERS["adam"](layer.parameters())
    x = torch.randn(3, 6)
    loss = layer(x).square().sum()
    loss.backward()
    optimizer.step()
    free = sorted(set(range(30)) - set(layer.support.tolist()))[:3]
    change_support_(layer, layer.support[:1], torch.tensor(free), optimizer)
    again = layer(x).square().sum()  # `loss` still holds the old accumulator
    optimizer.zero_grad()
    again.backward()
    assert layer.values.grad.shape == (6,)
    optimizer.step()
    assert loss.item() >= 0
    assert (layer.values != 0).any()


@pytest.mark.parametrize(
    ("dropped", "grown", "message"),
    [
        ([0], [3], "1 positions to drop, of which 0 are in the support"),
        ([1, 1], [0, 3], "2 positions to drop, of which 1"),
        ([1], [5], "position 5 is to grow and in the support"),
        ([1], [3, 3], "position 3 is to grow"),
        ([1], [30], r"must be in 0\.\.29"),
        ([1], [-1], r"must be in 0\.\.29"),
    ],
)
def test_positions_that_cannot_be(dropped, grown, message):
    layer = DpSLinear(6, 5, support=torch.tensor([1, 5, 8]))
    optimizer = trained("adam", layer)
    before = on_dense(layer, optimizer)
    with pytest.raises(ValueError, match=message):
        change_support_(layer, torch.tensor(dropped), torch.tensor(grown), optimizer)
    assert layer.support.tolist() == [1, 5, 8]
    assert all(torch.equal(dense, before[key]) for key, dense in on_dense(layer, optimizer).items())


def test_an_optimizer_that_mixes_all_weights_is_refused():
    layer = DpSLinear(6, 5, nnz=4)
    optimizer = torch.optim.LBFGS(layer.parameters())

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match="LBFGS keeps .* use an optimizer with a number per weight"):
        change_support_(layer, layer.support[:1], torch.tensor([], dtype=torch.int64), optimizer)


def test_sizes_of_a_state_dict_are_taken_over():
    model, other = (
        sparsify_(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)), 0.2) for _ in "ab"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change_support_(model[0], model[0].support[:2], torch.tensor([], dtype=torch.int64), optimizer)
    with pytest.raises(RuntimeError, match="nnz"):
        other.load_state_dict(model.state_dict())
    take_sizes_(other, model.state_dict())
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(model(x), other(x))
    take_sizes_(other, {"0.values": torch.zeros(31), "1.values": "none"})
    assert other[0].nnz == model[0].nnz


def test_a_layer_that_grows_from_nothing_trains():
    layer = DpSLinear(4, 3, density=0.01)  # which is no weight at all
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    change_support_(layer, integers([]), integers([2, 7]), optimizer)
    layer(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    assert layer.nnz == 2
    assert bool((layer.values != 0).all())
