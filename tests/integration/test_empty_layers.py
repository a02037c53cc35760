"""Layers without a single value train beside others: every optimizer, clipping, scaling, DDP, FSDP2."""

from __future__ import annotations

import inspect
import math
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.support.layers import draws
from tests.support.processes import in_group
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps import DpSConv2d, DpSLinear, merge_, sparsify_

OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
]
FLAGS = ("foreach", "fused", "amsgrad", "maximize", "centered", "capturable")
# What torch refuses of any network: matrices only, sparse gradients only, devices other than the CPU.
REFUSED = "Muon only supports 2D parameters|does not support dense gradients|must be on supported devices"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(DpSConv2d(2, 4, 3, nnz=0, offset="sdct"), nn.Flatten(), DpSLinear(16, 8, nnz=0), nn.ReLU()),
        DpSLinear(8, 3, density=0.5),
    )


def loss(model: nn.Module, share: slice = slice(None)) -> Tensor:
    return model(draws(6, 2, 4, 4)[share]).square().mean()


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_steps(kind: type[Optimizer]) -> None:
    options = inspect.signature(kind).parameters
    for flag in (None, *(flag for flag in FLAGS if flag in options)):
        arguments: dict[str, Any] = {"lr": 0.01} if "lr" in options else {}
        arguments |= {flag: True} if flag else {}
        model = network()
        before = model[4].values.detach().clone()

        def closure() -> Tensor:
            model.zero_grad()
            value = loss(model)
            value.backward()
            return value

        try:
            optimizer = kind(model.parameters(), **arguments)
            for _ in range(2):
                closure()
                optimizer.step(closure)
        except (ValueError, RuntimeError, AssertionError) as error:
            pattern = f".*({REFUSED})"
            dense = merge_(network())
            with pytest.raises(type(error), match=pattern):  # of the dense network as well
                optimizer = kind(dense.parameters(), **arguments)
                loss(dense).backward()
                optimizer.step()
            continue
        assert not torch.equal(model[4].values, before)
        optimizer.load_state_dict(optimizer.state_dict())
        assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_every_norm_clips(norm_type: float, foreach: bool | None) -> None:
    model = network()
    loss(model).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    total = nn.utils.clip_grad_norm_(model.parameters(), 1e-3, norm_type=norm_type, foreach=foreach)
    assert total == pytest.approx(float(torch.linalg.vector_norm(expected, norm_type)), rel=1e-4)
    nn.utils.clip_grad_value_(model.parameters(), 1e-6, foreach=foreach)
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) <= 1e-6


def test_a_scaler_steps() -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.Adafactor(model.parameters())
    before = model[4].values.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaler.scale(loss(model)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=math.inf)
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model[4].values, before)


def test_conversion_leaves_them_without_a_gradient() -> None:
    dense = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = {"0": torch.zeros(4, 4, dtype=torch.bool), "1": torch.eye(4, dtype=torch.bool)}
    model = sparsify_(dense, criterion=masks)
    assert not model[0].values.requires_grad and model[1].values.requires_grad
    assert all(p.requires_grad for p in (model[0].alpha, model[0].bias))
    assert all(p.requires_grad for p in merge_(model).parameters())


def worker(rank: int, wrapper: str, port: int, results: Any) -> None:
    found = in_group(rank, port, trained, wrapper)
    if rank == 0:
        results.put(found)


def trained(rank: int, wrapper: str) -> list[Any]:
    model = network()
    if wrapper == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (2,))
        for child in model:
            if next(child.parameters(), None) is not None:
                fully_shard(child, mesh=mesh)
        wrapped: nn.Module = fully_shard(model, mesh=mesh)
    else:
        wrapped = nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=wrapper == "ddp with views"
        )
    train(wrapped, slice(3 * rank, 3 * rank + 3))
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().numpy().copy() for p in found]


def train(model: nn.Module, share: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, share).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


@pytest.mark.parametrize("wrapper", ["ddp", "ddp with views", "fsdp2"])
def test_two_processes_are_one(wrapper: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    running = mp.start_processes(worker, (wrapper, port, results), 2, join=False, start_method="spawn")
    alone, start = network(), network()
    train(alone, slice(None))
    while not running.join(timeout=60):
        pass
    found = [torch.from_numpy(p) for p in results.get()]
    for mine, p, first in zip(found, alone.parameters(), start.parameters(), strict=True):
        assert mine.shape == p.shape and torch.allclose(mine, p, atol=1e-5)
        assert not p.requires_grad or not torch.equal(p, first)
