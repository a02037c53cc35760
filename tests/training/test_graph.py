"""A pass that is recorded once and replayed: all but the recording itself, which needs a GPU."""

import copy

import pytest
import torch
from torch import nn

import dctps
from dctps.training import (
    GraphedPass,
    Precision,
    Processes,
    build_optimizer,
    build_schedule,
    graph,
    parameter_groups,
    pass_once,
    train_epoch,
)  # fmt: skip

PRECISION = Precision("off", "cpu")


@pytest.fixture
def played_again(monkeypatch):
    """In place of a CUDA graph: warm-ups, then the same pass on the same memory."""
    recorded = []

    def record(once):
        for _ in range(4):
            once()
        recorded.append(once)
        return once

    monkeypatch.setattr(graph, "record", record)
    return recorded


def network():
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    return dctps.sparsify_(nn.Sequential(*layers), 0.1, seed=2)


def trained(model, batches, *, with_graph, dynamics):
    """The losses of two epochs, and what they leave."""
    groups = parameter_groups(model, 5e-4)
    optimizer = build_optimizer("adam", groups, lr=1e-2)
    schedule = build_schedule("onecycle", optimizer, total_steps=2 * len(batches))
    moving = dctps.RigL(model, optimizer, update_interval=3, end=9) if dynamics else None

    def once(images, labels):
        return pass_once(model, images, labels, labels, 1.0, PRECISION, Processes())

    passes = None
    if with_graph:
        passes = GraphedPass(once, model, [p for group in groups for p in group["params"]])
    losses = [
        train_epoch(
            model, batches, optimizer, schedule, epoch=epoch, precision=PRECISION, dynamics=moving,
            graph=passes, clip_norm=1.0,
        )
        for epoch in (1, 2)
    ]  # fmt: skip
    return losses, model.state_dict(), optimizer.state_dict()["state"]


@pytest.mark.parametrize("dynamics", [False, True])
def test_a_replayed_pass_trains_bit_for_bit_as_a_plain_one(played_again, dynamics) -> None:
    draw = torch.Generator().manual_seed(3)
    sizes = [16, 16, 16, 16, 5]  # the last batch of an epoch is smaller
    batches = [
        (torch.randn(n, 2, 8, 8, generator=draw), torch.randint(5, (n,), generator=draw)) for n in sizes
    ]
    model = network()
    plain = trained(copy.deepcopy(model), batches, with_graph=False, dynamics=dynamics)
    replayed = trained(copy.deepcopy(model), batches, with_graph=True, dynamics=dynamics)
    assert len(played_again) == 1
    assert plain[0] == replayed[0]
    for name, value in plain[1].items():
        assert torch.equal(value, replayed[1][name]), name
    for index, slots in plain[2].items():
        assert all(torch.equal(value, replayed[2][index][name]) for name, value in slots.items())
    moved = plain[1]["0.support"], model.state_dict()["0.support"]
    assert torch.equal(*moved) != dynamics


def test_what_asks_for_it(monkeypatch) -> None:
    monkeypatch.delenv("DCTPS_CUDA_GRAPH", raising=False)
    assert not graph.wanted()
    monkeypatch.setenv("DCTPS_CUDA_GRAPH", "1")
    assert graph.wanted()
    monkeypatch.setenv("DCTPS_CUDA_GRAPH", "yes")
    with pytest.raises(ValueError, match="DCTPS_CUDA_GRAPH='yes': set it to 1"):
        graph.wanted()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recording_on_a_gpu() -> None:
    model = network().cuda()
    images, labels = torch.randn(16, 2, 8, 8, device="cuda"), torch.randint(5, (16,), device="cuda")

    def once(images, labels):
        return pass_once(model, images, labels, labels, 1.0, Precision("off", "cuda"), Processes())

    passes = GraphedPass(once, model, list(model.parameters()))
    found = [passes(images, labels) for _ in range(3)]
    assert all(torch.equal(one, found[0]) for one in found)
