"""How criteria look at a network and their data: afterwards it is what it was."""

from functools import partial

import pytest
import torch
from tests.support import naive_selection as naive
from torch import nn

from dctps import criteria
from dctps.selection.weights import choose

SCORED = ["magnitude", "snip", "grasp", "force", "iter-snip", "synflow"]


def snapshot(model):
    return (
        {
            n: (p.data_ptr(), p.dtype, p.detach().clone(), p.requires_grad)
            for n, p in model.named_parameters()
        },
        {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        {n: m.training for n, m in model.named_modules()},
        {n: len(m._forward_hooks) for n, m in model.named_modules()},
        torch.get_rng_state(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.filterwarnings("ignore:after the last step")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("criterion", SCORED)
def test_the_model_is_afterwards_what_it_was(criterion, fails, dtype):
    model = naive.Network(0).to(dtype)
    model.norm2.eval()
    model.hidden.requires_grad_(False)
    data = [(x.to(dtype), y) for x, y in naive.data(0, 2)]
    criteria.cross_entropy(model, data[0]).backward()
    if fails:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    before = snapshot(model)

    def ask():
        keep = dict.fromkeys(naive.LAYERS, 30 if fails else 3)
        return choose(criterion, model, naive.layers_of(model), None, data, keep)

    if fails:
        with pytest.raises(ValueError, match="scores are zero|not zero"):
            ask()
    else:
        first = ask()
    assert same(snapshot(model), before)
    if not fails:
        torch.rand(5)
        assert same(ask(), first)


def test_dropout_is_off_and_the_users_criterion_may_leave_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(3, (10,)))]
    plain = nn.Sequential(model[0], model[2])
    a = choose("snip", model, naive.layers_of(model), None, data, 20)
    b = choose("snip", plain, naive.layers_of(plain), None, data, 20)
    assert torch.equal(a["2"], b["1"])

    def noisy(model, layers, loss, batches):
        for batch in batches:
            criteria.cross_entropy(model, batch).backward()
        return {name: layer.weight.grad.abs() + torch.rand(()) for name, layer in layers.items()}

    before = snapshot(model)
    choose(noisy, model, naive.layers_of(model), None, data, 20)
    assert same(snapshot(model), before)


def test_force_takes_new_data_from_a_loader_in_each_step():
    class Loader:
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            return iter(naive.data(Loader.passes, 1))

    model = naive.Network(0)
    choose(partial(criteria.force, steps=4), model, naive.layers_of(model), None, Loader(), 100)
    assert Loader.passes == 4
    choose("grasp", model, naive.layers_of(model), None, Loader(), 30)
    assert Loader.passes == 5
    # An iterator is kept, so that the later steps have data too.
    three = partial(criteria.force, steps=3)
    once = choose(three, model, naive.layers_of(model), None, iter(naive.data(5, 2)), 100)
    assert same(once, choose(three, model, naive.layers_of(model), None, naive.data(5, 2), 100))
