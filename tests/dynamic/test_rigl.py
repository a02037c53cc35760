"""RigL against a naive dense masked one in float64, and in every way of training."""

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dynamics import RULES, Masked, batch, layers_of, move, network, supports
from torch import nn
from torch.utils.checkpoint import checkpoint

from dctps import RigL, sparsify_
from dctps.networks import dense_gradient
from dctps.nn import DpSLayer


def train(model, steps, *, rule="adam", run=None, loss=nn.functional.cross_entropy, **choices):
    """Train with RigL, and give the supports after each step."""
    optimizer = RULES[rule](model.parameters())
    rigl = RigL(model, optimizer, **{"update_interval": 3, "end": 20, **choices})
    seen = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss((run or model)(x), y).backward()
        optimizer.step()
        rigl.step()
        seen.append(supports(model))
    rigl.close()
    return seen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("offset", ["dct", "zero"])
@pytest.mark.parametrize("regrow", [True, False])
def test_equals_a_naive_dense_masked_rigl(rule, offset, regrow):
    model = network(offset)
    masked = Masked(network(offset), rule, 0.1 if rule in ("sgd", "nesterov") else 0.02, 0.01)
    optimizer = RULES[rule](model.parameters())
    rigl = RigL(model, optimizer, update_interval=3, drop_fraction=0.5, end=14, regrow_dropped=regrow)
    nnz = [layer.nnz for layer in layers_of(model)]
    moved = 0
    for step in range(1, 19):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        before = supports(model)
        due = rigl.step()
        assert due == (step in (3, 6, 9, 12))

        gradients = masked.gradients(x, y)
        masked.step(gradients)
        if due:
            masked.move(gradients, 0.5, 14, regrow)
        assert supports(model) == list(masked.active.values())
        assert [layer.nnz for layer in layers_of(model)] == nnz
        moved += sum(len(set(a) - set(b)) for a, b in zip(supports(model), before, strict=True))
        for i, layer in enumerate(model):
            if isinstance(layer, DpSLayer):
                torch.testing.assert_close(
                    layer.values.detach(), masked.numbers[i, "S"][layer.support], rtol=1e-9, atol=1e-12
                )
        if due:
            for layer, old in zip(layers_of(model), before, strict=True):
                new = ~torch.isin(layer.support, torch.tensor(old))
                assert (layer.values[new] == 0).all()
                for slot in optimizer.state[layer.values].values():
                    assert slot.dim() == 0 or (slot[new] == 0).all()
    assert moved > 20


@given(st.data())
def test_nothing_inactive_is_kept(data):
    """Values that are exactly 0, all of them at the start of S, and inputs and outputs without a gradient."""
    n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    model = sparsify_(nn.Sequential(nn.Linear(n, m).double()), 1.0)
    nnz = data.draw(st.integers(1, n * m))
    chosen = data.draw(st.permutations(range(n * m)))[:nnz]
    model = nn.Sequential(
        type(model[0])(n, m, support=torch.tensor(sorted(chosen), dtype=torch.int64), dtype=torch.float64)
    )
    layer = model[0]
    with torch.no_grad():
        layer.values.copy_(torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=nnz, max_size=nnz))))
    x = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=2 * n, max_size=2 * n)))
    g = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=2 * m, max_size=2 * m)))
    x, g = x.double().reshape(2, n), g.double().reshape(2, m)
    regrow, least = data.draw(st.booleans()), data.draw(st.booleans())
    fraction = data.draw(st.sampled_from([0.3, 0.5, 1.0]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    options = {"drop_fraction": fraction, "regrow_dropped": regrow, "at_least_one": least}
    if not least and int(fraction * nnz) == 0:
        with pytest.raises(ValueError, match=f"no weight would ever move: {fraction} of the {nnz} weights"):
            RigL(model, optimizer, update_interval=1, end=10, decay="constant", **options)
        return
    rigl = RigL(model, optimizer, update_interval=1, end=10, decay="constant", **options)
    values = torch.zeros(n * m, dtype=torch.float64)
    values[layer.support] = layer.values.detach()
    before = layer.support.tolist()
    model(x).backward(g)
    optimizer.step()
    rigl.step()

    count = max(int(fraction * nnz), 1 if least and nnz else 0)
    expected, grown = move(values, before, (g.T @ x).flatten(), count, regrow)
    assert layer.support.tolist() == expected
    assert layer.nnz == nnz
    for position, value in zip(expected, layer.values.tolist(), strict=True):
        assert value == (0 if position in grown else values[position])
    rigl.close()


def test_the_last_micro_batch_decides_what_grows():
    accumulated, alone = network(), network()
    optimizer = torch.optim.SGD(accumulated.parameters(), lr=0.0)
    rigl = RigL(accumulated, optimizer, update_interval=1, end=5)
    for step in range(3):
        x, y = batch(step)
        nn.functional.cross_entropy(accumulated(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        accumulated(batch(7)[0])  # evaluation in between changes nothing
    rigl.step()
    other = torch.optim.SGD(alone.parameters(), lr=0.0)
    one = RigL(alone, other, update_interval=1, end=5)
    x, y = batch(2)
    nn.functional.cross_entropy(alone(x), y).backward()
    other.step()
    one.step()
    assert supports(accumulated) == supports(alone) != supports(network())


def test_hooks_are_there_in_update_steps_only_and_copies_have_none():
    model = network()
    optimizer = RULES["adam"](model.parameters())
    rigl = RigL(model, optimizer, update_interval=3, end=7)
    for step in range(1, 12):
        armed = step in (3, 6)
        assert all(bool(layer._forward_hooks) == armed for layer in layers_of(model))
        if armed:
            for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                copied(batch(0)[0]).sum().backward()
                assert not rigl._growth
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        rigl.step()
        assert not rigl._growth
        assert not rigl._capture._pairs


@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_a_scaler_leaves_out_do_not_count(fused):
    model = network(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    rigl = RigL(model, optimizer, update_interval=2, end=100)
    start, done = supports(model), []
    for step in range(5):
        x, y = batch(step, dtype=torch.float32)
        if step in (0, 2):
            x[0, 0, 0, 0] = torch.inf
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x).nan_to_num(), y)).backward()
        for p in model.parameters():
            if step in (0, 2):
                p.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        done.append((rigl.step(), rigl.steps))
        assert (supports(model) == start) == (step < 3)
    assert done == [(False, 0), (False, 1), (False, 1), (True, 2), (False, 3)]


def test_under_autocast():
    model = network(dtype=torch.float32)
    before = supports(model)
    optimizer = torch.optim.Adam(model.parameters())
    rigl = RigL(model, optimizer, update_interval=1, end=5)
    x, y = batch(0, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    assert rigl.step()
    assert supports(model) != before


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_activation_checkpointing(reentrant):
    model, plain = network(), network()

    def run(x):
        x = model[0](x)
        x = checkpoint(model[1:4], x, use_reentrant=reentrant)
        return checkpoint(model[4:], x, use_reentrant=reentrant)

    assert train(model, 8, run=run) == train(plain, 8)


def test_a_layer_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = (
                nn.Linear(6, 6, dtype=torch.float64),
                nn.Linear(6, 3, dtype=torch.float64),
            )

        def forward(self, x):
            return self.outer(self.inner(self.inner(x).tanh()))

    torch.manual_seed(0)
    dense = Twice()
    model = sparsify_(copy.deepcopy(dense), 0.4, offset="zero", seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rigl = RigL(model, optimizer, update_interval=1, end=9, drop_fraction=1.0)
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        for layer, like in ((dense.inner, model.inner), (dense.outer, model.outer)):
            layer.weight.copy_(like.to_dense())
            layer.bias.copy_(like.bias)
    before = supports(model)
    for network_ in (model, dense):
        nn.functional.cross_entropy(network_(x), y).backward()
    optimizer.step()
    rigl.step()
    values = [layer.weight.detach().flatten() for layer in (dense.inner, dense.outer)]
    for i, layer in enumerate((dense.inner, dense.outer)):
        f = 0.5 * (1 + torch.cos(torch.tensor(torch.pi / 9, dtype=torch.float64)))
        count = int(float(f) * len(before[i]))
        assert supports(model)[i] == move(values[i], before[i], layer.weight.grad.flatten(), count)[0]


def test_a_compiled_network_moves_as_an_eager_one():
    eager = train(network(), 7)
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert train(model, 7, run=compiled) == eager
    assert train(torch.compile(network(), backend="aot_eager"), 7)[-1] == eager[-1]


def runs_compiled():
    """Whether compiled code runs: a compiler that is asked to keep out counts nothing."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    torch.compile(lambda x: x + 1, backend=counter)(torch.ones(1))
    return counter.frame_count == 1


@pytest.fixture
def alone(monkeypatch):
    """As if no other test had left a `RigL` open."""
    gc.collect()
    monkeypatch.setattr(dense_gradient._Eager, "open", 0)
    with torch.compiler.set_stance("default"):
        yield


def due(model):
    return RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), update_interval=1, end=9)


@pytest.mark.usefixtures("alone")
def test_compiled_code_runs_again_after_the_last_of_several_updates():
    one, other = due(network()), due(network())
    assert not runs_compiled()
    one.close()
    assert not runs_compiled()
    other.close()
    assert runs_compiled()


@pytest.mark.usefixtures("alone")
def test_compiled_code_runs_again_when_one_that_was_never_closed_is_gone():
    model = network()
    rigl = due(model)
    assert not runs_compiled()
    rigl.optimizer.zero_grad()
    del rigl
    gc.collect()
    assert runs_compiled()
    model(batch(0)[0]).sum().backward()  # the hooks of what is gone see nothing


def test_a_run_that_goes_on():
    model = network()
    optimizer = RULES["adam"](model.parameters())
    rigl = RigL(model, optimizer, update_interval=3, end=20)
    whole = train(network(), 12)
    for step in range(12):
        if step in (2, 3, 8):  # right before an update, right after one, between
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rigl.state_dict()))
            rigl.close()
            model = network()
            optimizer = RULES["adam"](model.parameters())
            rigl = RigL(model, optimizer, update_interval=3, end=20)
            for part, state in zip((model, optimizer, rigl), saved, strict=True):
                part.load_state_dict(state)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        rigl.step()
        assert supports(model) == whole[step]


def test_layers_of_few_weights_move_where_asked():
    for least, expected in ((False, False), (True, True)):
        model = network(density=0.05)
        before = supports(model)[0]
        assert 1 <= len(before) <= 3  # int(0.3 * nnz) is 0
        after = train(model, 3, at_least_one=least, regrow_dropped=False)[-1][0]
        assert (after != before) == expected
        assert len(after) == len(before)


def test_frozen_layers_and_unused_ones_stay():
    model = network()
    model[0].values.requires_grad_(False)
    before = supports(model)
    after = train(model, 3)[-1]
    assert after[0] == before[0]
    assert after[1] != before[1]
    model = network()
    after = train(model, 3, run=lambda x: model[4:](torch.cat([x.mean(1, keepdim=True)] * 2, 1)))[-1]
    assert after[:2] == before[:2]
    assert after[2] != before[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update_interval": 0}, "update_interval must be at least 1, got 0"),
        ({"drop_fraction": 0.0}, r"drop_fraction must be in \(0, 1\], got 0.0"),
        ({"drop_fraction": 1.5}, "drop_fraction must be"),
        ({"end": -1}, "end must be a number of steps"),
        ({"decay": "linear"}, "decay must be 'cosine' or 'constant'"),
    ],
)
def test_bad_numbers(change, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        RigL(model, RULES["sgd"](model.parameters()), **{"end": 10, **change})


def test_mistakes_are_named():
    model = network()
    with pytest.raises(ValueError, match="does not train the values of layer '0'"):
        RigL(model, RULES["sgd"](network().parameters()), end=10)
    with pytest.raises(ValueError, match="has no DpS layer whose values train"):
        RigL(nn.Linear(3, 3), RULES["sgd"](model.parameters()), end=10)
    optimizer = RULES["sgd"](model.parameters())
    rigl = RigL(model, optimizer, update_interval=1, end=10)
    assert not rigl.step()  # the optimizer has not stepped
    optimizer.step()
    with pytest.raises(RuntimeError, match="saw no backward pass"):
        rigl.step()
    with pytest.raises(ValueError, match="steps of a dynamics' state must be at least 0, got -1"):
        rigl.load_state_dict({"steps": -1})
