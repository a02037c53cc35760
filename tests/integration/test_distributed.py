"""Two processes with half a batch each are one process with the whole: DDP and FSDP2 on CPU."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.support.layers import draws
from tests.support.processes import in_group
from torch import Tensor, nn

from dctps import project_, sparsify_
from dctps.models import build_model

STEPS, BATCH = 20, 8


def lenet(wrapper: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("lenet5", 10, 3)
    if wrapper == "ddp-hyperplane":
        return project_(model, 300, projection="fastfood")
    return sparsify_(model, 0.01, seed=0)


def train(model: nn.Module, share: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x = draws(BATCH, 3, 32, 32, seed=step)[share]
        y = torch.arange(BATCH)[share] % 10
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def worker(rank: int, wrapper: str, port: int, results: mp.SimpleQueue) -> None:
    found = in_group(rank, port, trained, wrapper)
    if rank == 0:
        results.put(found)


def trained(rank: int, wrapper: str) -> dict[str, Any]:
    """This process's half of the training, and what came out."""
    model = lenet(wrapper)
    if wrapper.startswith("ddp"):
        buffers = wrapper == "ddp-buffers"  # every forward then sends the supports
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(model, broadcast_buffers=buffers)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (2,))
        for child in model.children():
            if next(child.parameters(), None) is not None:
                fully_shard(child, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    train(wrapped, slice(rank * BATCH // 2, (rank + 1) * BATCH // 2))
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().numpy().copy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def other_seed(rank: int, port: int, results: mp.SimpleQueue) -> None:
    results.put((rank, in_group(rank, port, wrapped_with_its_own_seed)))


def wrapped_with_its_own_seed(rank: int) -> str:
    """DDP makes rank 1, built from another seed, a copy of rank 0 in place: the error of its first call."""
    model = sparsify_(nn.Sequential(nn.Linear(16, 8)), 0.5, offset="sdct", seed=rank)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
    try:
        with torch.no_grad():
            wrapped(torch.ones(1, 16))
    except ValueError as error:
        return str(error)
    return "no error"


def test_processes_of_other_seeds_are_refused() -> None:
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    running = mp.start_processes(other_seed, (free_port(), results), 2, join=False, start_method="spawn")
    while not running.join(timeout=60):
        pass
    found = dict(results.get() for _ in range(2))
    assert found[0] == "no error" and "layer '0'" in found[1] and "the same seed" in found[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("wrapper", ["ddp", "ddp-buffers", "fsdp2", "ddp-hyperplane"])
def test_two_processes_are_one(wrapper: str) -> None:
    port = free_port()
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    running = mp.start_processes(worker, (wrapper, port, results), 2, join=False, start_method="spawn")
    alone, start = lenet(wrapper), lenet(wrapper)
    train(alone, slice(None))
    while not running.join(timeout=60):
        pass
    found: dict[str, Tensor] = {name: torch.from_numpy(p) for name, p in results.get().items()}
    for (name, p), q in zip(alone.named_parameters(), start.parameters(), strict=True):
        if not p.requires_grad:
            continue
        assert not torch.equal(p, q), f"{name} did not train"
        assert (found[name] - p).abs().max() <= 1e-5, name
