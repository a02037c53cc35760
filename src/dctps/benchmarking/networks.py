"""Training steps and forward passes of whole networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dctps.benchmarking.plan import BATCHES, Cell, Plan
from dctps.benchmarking.timing import Step, measure
from dctps.models import build_model
from dctps.networks import fuse_
from dctps.selection import sparsify_
from dctps.training import build_optimizer, parameter_groups

_CLASSES, _RATE = 10, 1e-4


def network_cells(plan: Plan) -> Iterator[Cell]:
    """A training step (forward, backward, Adam) and a forward pass of each network beside the dense one."""
    for model in plan.models:
        networks = candidates(model, plan)
        yield _cell(model, plan.batch or BATCHES.get(model, 32), "training step", networks, plan)
        yield _cell(model, plan.batch or BATCHES.get(model, 32), "forward pass", networks, plan)


def latency_cells(plan: Plan) -> Iterator[Cell]:
    """The forward pass of a single image."""
    for model in plan.models:
        yield _cell(model, 1, "forward pass", candidates(model, plan), plan)


def _cell(model: str, batch: int, what: str, networks: dict[str, nn.Module], plan: Plan) -> Cell:
    make, images = {"training step": training_step, "forward pass": forward_pass}[what], images_for(batch)
    times = measure({name: make(network, images) for name, network in networks.items()}, plan.seconds)
    return {"model": model, "batch": batch, "density": plan.density, "what": what, "candidates": times}


def candidates(model: str, plan: Plan) -> dict[str, nn.Module]:
    """The dense network, and one for each offset."""
    return {name: network_for(model, name, plan.density) for name in ("dense", *plan.offsets)}


def network_for(model: str, offset: str, density: float) -> nn.Module:
    """The network under an offset with fused norms, or torch's own as `"dense"` in channels-last order."""
    if offset == "dense":
        return channels_last(build_model(model, _CLASSES, 3))
    with torch.device("meta"):
        network = build_model(model, _CLASSES, 3)
    return fuse_(sparsify_(network, density, offset=offset))


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its filters in channels-last order."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images_for(batch: int) -> Tensor:
    """Noise in the shape of CIFAR's images, channels last."""
    return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)


def training_step(network: nn.Module, images: Tensor) -> Step:
    """Forward, backward and Adam on one batch with drawn labels."""
    labels = torch.randint(_CLASSES, (len(images),))
    optimizer = build_optimizer("adam", parameter_groups(network, 0.0), lr=_RATE)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def forward_pass(network: nn.Module, images: Tensor) -> Step:
    """Logits, without gradients."""

    def step() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    return step
