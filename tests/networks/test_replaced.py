"""An optimizer that was made before its parameters were replaced: said once, and nothing else is."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import dctps
from dctps.networks.replaced import _STEPS

CALLS = {
    "sparsify_": lambda model, folder: dctps.sparsify_(model, 0.2),
    "merge_": lambda model, folder: dctps.merge_(model),
    "project_": lambda model, folder: dctps.project_(model, 5),
    "load_pretrained_": dctps.load_pretrained_,
}


def network(call="sparsify_"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return dctps.sparsify_(model, 0.5) if call == "merge_" else model


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    gc.collect()
    step(model := network(), torch.optim.SGD(model.parameters(), 0.1))
    assert not _global_optimizer_pre_hooks


@pytest.fixture
def folder(tmp_path):
    dctps.save_pretrained(dctps.sparsify_(network(), 0.2), tmp_path)
    return tmp_path


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("call", CALLS)
def test_it_is_said_once(call, kind, trained, folder):
    model = network(call)
    optimizer = kind(model.parameters(), lr=0.01)
    if trained:
        step(model, optimizer)
    model = CALLS[call](model, folder)
    with pytest.warns(
        UserWarning, match=f"{kind.__name__} holds .* parameters that {call} has replaced.*after"
    ):
        step(model, optimizer)
    step(model, optimizer)


@pytest.mark.parametrize("call", CALLS)
def test_the_right_order_says_nothing(call, folder):
    model = CALLS[call](network(call), folder)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        step(model, kind(model.parameters(), lr=0.01))


def test_an_attention_and_a_lone_layer():
    for model, x in (
        (nn.MultiheadAttention(8, 2, batch_first=True), torch.ones(1, 2, 8)),
        (nn.Linear(8, 8), torch.ones(1, 8)),
    ):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model = dctps.sparsify_(model, 0.5)
        (model(x, x, x)[0] if isinstance(model, dctps.DpSMultiheadAttention) else model(x)).sum().backward()
        with pytest.warns(UserWarning, match="that sparsify_ has replaced"):
            optimizer.step()


def test_what_was_put_back_or_copied_before_is_no_reason():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = [(torch.randn(4, 6), torch.randint(3, (4,)))]
    with pytest.raises(ValueError, match="density must be in"):
        dctps.sparsify_(model, 2.0)
    with pytest.raises(ValueError, match="scores"):
        dctps.sparsify_(model, 0.5, criterion="offset-snip", batches=[(x * float("nan"), y) for x, y in data])
    dctps.sparsify_(copy.deepcopy(model), 0.5, criterion="offset-snip", batches=data)
    step(model, optimizer)


def test_parts_that_train_in_another_network_are_no_reason():
    teacher = network()
    optimizer = torch.optim.SGD(teacher.parameters(), 0.1)
    student = dctps.sparsify_(nn.Sequential(*teacher), 0.5)  # the same layers, in another container
    step(teacher, optimizer)
    assert student[0] is not teacher[0]


def test_it_looks_at_the_first_steps_only():
    kept = network()
    held = list(kept.parameters())  # alive, in no optimizer
    model = dctps.sparsify_(kept, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(_STEPS):
        assert len(_global_optimizer_pre_hooks) == 1
        optimizer.step()
    assert not _global_optimizer_pre_hooks and len(held) == 6


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_a_compiled_step():
    model = network()
    dctps.sparsify_(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 6)).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
