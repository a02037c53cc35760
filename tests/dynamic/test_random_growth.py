"""SET and DSR: counts, thresholds and draws by rules written out again."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dynamics import RULES, batch, layers_of, network, supports
from torch import nn

from dctps import DSR, SET, DpSLinear
from dctps.dynamic.support import free_positions


def steps_of(method, model, steps, rule="adam", **choices):
    """Train; after each step yields the supports before and after, and whether they were due."""
    optimizer = RULES[rule](model.parameters())
    dynamics = method(model, optimizer, **{"update_interval": 2, "end": 20, **choices})
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        before = [(layer.support.clone(), layer.values.detach().clone()) for layer in layers_of(model)]
        due = dynamics.step()
        yield before, due, dynamics, optimizer
    dynamics.close()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("offset", ["dct", "zero"])
def test_set_drops_the_smallest_and_grows_elsewhere(rule, offset):
    model = network(offset)
    changes = 0
    for before, due, _, optimizer in steps_of(SET, model, 8, rule, drop_fraction=0.5, decay="constant"):
        for (support, values), layer in zip(before, layers_of(model), strict=True):
            assert layer.nnz == len(support)
            if not due:
                assert torch.equal(layer.support, support)
                continue
            changes += 1
            count = int(0.5 * len(support))
            order = sorted(range(len(support)), key=lambda i: (abs(float(values[i])), -i))
            kept = {int(support[i]): float(values[i]) for i in order[count:]}
            now = dict(zip(layer.support.tolist(), layer.values.tolist(), strict=True))
            grown = now.keys() - kept.keys()
            assert len(grown) == count
            assert not grown & set(support.tolist())
            assert kept.items() <= now.items()
            assert all(now[p] == 0 for p in grown)
            new = torch.tensor([p in grown for p in layer.support.tolist()])
            for slot in optimizer.state[layer.values].values():
                assert slot.dim() == 0 or (slot[new] == 0).all()
    assert changes == 12


def test_set_by_sign():
    model = network("zero")
    for before, due, _, _ in steps_of(SET, model, 4, drop="signed", drop_fraction=0.4, decay="constant"):
        if not due:
            continue
        for (support, values), layer in zip(before, layers_of(model), strict=True):
            lost = [float(v) for p, v in zip(support, values, strict=True) if p not in layer.support]
            for sign in (1, -1):
                ours = sorted(sign * float(v) for v in values if sign * float(v) > 0)
                assert sorted(sign * v for v in lost if sign * v > 0) == ours[: int(0.4 * len(ours))]


def test_set_draws_by_seed_layer_and_step():
    def run(seed):
        model = network()
        list(steps_of(SET, model, 4, seed=seed))
        return supports(model)

    assert run(0) == run(0) != run(1)


def test_a_full_layer_stays():
    model = nn.Sequential(DpSLinear(4, 4, density=1.0), DpSLinear(4, 4, nnz=15))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamics = SET(model, optimizer, update_interval=1, end=3, drop_fraction=1.0)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    before = supports(model)
    dynamics.step()
    assert supports(model)[0] == before[0]
    assert len(set(supports(model)[1]) - set(before[1])) == 1


@given(st.data())
def test_free_positions_are_free(data):
    n, m = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    layer = DpSLinear(n, m, nnz=data.draw(st.integers(0, n * m)))
    count = data.draw(st.integers(0, n * m - layer.nnz))
    found = free_positions(layer, count, "grow 1", seed=data.draw(st.integers(0, 99))).tolist()
    assert found == sorted(set(found))
    assert len(found) == count
    assert not set(found) & set(layer.support.tolist())
    assert all(0 <= p < n * m for p in found)


def test_free_positions_are_drawn_alike():
    layer = DpSLinear(5, 4, support=torch.tensor([0, 3, 4, 11, 19]))
    drawn = Counter(p for seed in range(2000) for p in free_positions(layer, 3, "x", seed=seed).tolist())
    assert len(drawn) == 15
    # 400 expected of each, standard deviation 17.9
    assert max(abs(count - 400) for count in drawn.values()) < 90


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("offset", ["dct", "zero"])
def test_dsr_keeps_the_total(rule, offset):
    model = network(offset)
    total = sum(layer.nnz for layer in layers_of(model))
    sizes = set()
    threshold, seen = 0.01, set()
    for before, due, dynamics, optimizer in steps_of(
        DSR, model, 14, rule, threshold=threshold, drop_fraction=0.2
    ):
        counts = [layer.nnz for layer in layers_of(model)]
        sizes.add(tuple(counts))
        assert sum(counts) == total
        if not due:
            continue
        dropped, survivors, grown_counts = 0, [], []
        for (support, values), layer in zip(before, layers_of(model), strict=True):
            order = sorted(range(len(support)), key=lambda i: (abs(float(values[i])), -i))
            count = min(sum(abs(float(v)) < threshold for v in values), len(values) - 1)
            kept = {int(support[i]): float(values[i]) for i in order[count:]}
            now = dict(zip(layer.support.tolist(), layer.values.tolist(), strict=True))
            grown = now.keys() - kept.keys()
            assert kept.items() <= now.items()
            assert all(now[p] == 0 for p in grown)
            assert not grown & set(support.tolist())
            for slot in optimizer.state[layer.values].values():
                assert slot.dim() == 0 or slot.shape == layer.values.shape
            dropped += count
            survivors.append(len(kept))
            grown_counts.append(len(grown))
        for share, grown in zip(survivors, grown_counts, strict=True):
            assert abs(grown - dropped * share / sum(survivors)) < 1
        factor = 0.5 if dropped > 0.22 * total else 2.0 if dropped < 0.18 * total else 1.0
        threshold *= factor
        seen.add(factor)
        assert dynamics.threshold == threshold
    assert len(sizes) > 2
    assert len(seen) > 1


def test_dsr_goes_on():
    whole, model = network(), network()
    reference = [copy.deepcopy(supports(whole)) for _ in steps_of(DSR, whole, 8, threshold=0.05)]
    assert reference[-1] != reference[0]
    parts = list(zip(range(4), steps_of(DSR, model, 4, threshold=0.05), strict=True))
    _, _, dynamics, optimizer = parts[-1][1]
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), dynamics.state_dict()))
    from dctps.dynamic import take_sizes_

    model = network()
    take_sizes_(model, saved[0])
    model.load_state_dict(saved[0])
    optimizer = RULES["adam"](model.parameters())
    optimizer.load_state_dict(saved[1])
    dynamics = DSR(model, optimizer, update_interval=2, end=20)
    dynamics.load_state_dict(saved[2])
    for step in range(4, 8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        dynamics.step()
        assert supports(model) == reference[step]


def test_dsr_where_there_is_no_room():
    model = nn.Sequential(DpSLinear(4, 4, nnz=14), DpSLinear(4, 4, nnz=15), DpSLinear(4, 4, nnz=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dynamics = DSR(model, optimizer, update_interval=1, end=9, threshold=1.0)
    for _ in range(3):
        optimizer.step()
        dynamics.step()
        counts = [layer.nnz for layer in model]
        assert sum(counts) == 29
        assert counts[2] == 0
        assert all(layer.support.diff().min() > 0 for layer in model[:2])


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (SET, {"drop": "sign"}, "drop must be 'magnitude' or 'signed'"),
        (SET, {"drop_fraction": 2.0}, "drop_fraction must be"),
        (SET, {"update_interval": 0}, "update_interval must be"),
        (DSR, {"drop_fraction": 0.0}, "drop_fraction must be"),
        (DSR, {"threshold": 0.0}, "threshold must be above 0"),
    ],
)
def test_bad_choices(method, change, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        method(model, RULES["sgd"](model.parameters()), **{"end": 10, **change})


def test_a_state_that_is_none():
    model = network()
    dynamics = DSR(model, RULES["sgd"](model.parameters()), end=10)
    with pytest.raises(ValueError, match="threshold nan"):
        dynamics.load_state_dict({"steps": 1, "threshold": float("nan")})
