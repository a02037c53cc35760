"""The network that a configuration describes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import dctps
from dctps.dynamic import DSR, SET, Dynamics, RigL
from dctps.experiments.config import RunConfig, resolve
from dctps.models import build_model
from dctps.names import lookup
from dctps.reporting import Report
from dctps.training import Processes

# Classes and channels of the data sets that come with dctps, so that a report needs no data files.
_SHAPES = {"digits": (10, 1), "cifar10": (10, 3), "cifar100": (100, 3)}


def build_network(config: RunConfig, classes: int, in_channels: int, device: torch.device) -> nn.Module:
    """The network of `config`, initialised from `config.seed` and torch's global generator, on `device`.

    Where neither criterion nor alpha looks at the dense weights, they are never made.

    Args:
        config: resolved.
        classes: of the data set.
        in_channels: of its images.
        device: where the network is to be.

    Raises:
        ValueError: an unknown model, offset, allocation or criterion, or one that does not fit the model.
    """
    # A resolved configuration has all three or, for the dense network, none.
    if config.density is None or config.offset is None or config.criterion is None:
        return build_model(config.model, classes, in_channels).to(device)
    weightless = config.criterion == "random" and config.alpha != "match"
    with torch.device("meta" if weightless else "cpu"):
        model = build_model(config.model, classes, in_channels)
    return dctps.sparsify_(
        model if weightless else model.to(device),
        config.density,
        offset=config.offset,
        allocation=config.allocation,
        criterion=config.criterion,
        alpha=config.alpha,
        alpha_trainable=config.alpha_trainable,
        seed=config.seed,
        device=device,
    )


def build_dynamics(
    config: RunConfig, model: nn.Module, optimizer: Optimizer, total_steps: int, processes: Processes
) -> Dynamics | None:
    """What changes the supports of `model` while `optimizer` trains it; None where they stay.

    Args:
        config: resolved.
        model: of `build_network`.
        optimizer: of its parameters.
        total_steps: optimizer steps of the whole run.
        processes: that share the batches.
    """
    if config.dynamics is None or config.update_interval is None or config.drop_fraction is None:
        return None
    assert config.dynamics_end is not None, "resolve() fills it in"
    when: dict[str, Any] = {
        "update_interval": config.update_interval,
        "drop_fraction": config.drop_fraction,
        "end": round(config.dynamics_end * total_steps),
    }
    match config.dynamics:
        case "rigl":
            return RigL(model, optimizer, all_reduce=processes.add_ if processes.count > 1 else None, **when)
        case "set":
            return SET(model, optimizer, seed=config.seed, **when)
        case _:
            return DSR(model, optimizer, seed=config.seed, in_data_parallel=True, **when)


def describe(config: RunConfig, classes: int | None = None, in_channels: int | None = None) -> Report:
    """The report on the network of `config`, from a build of its own: no data are read.

    Args:
        config: what to build.
        classes: outputs (None: those of the data set).
        in_channels: of the images (None: those of the data set).

    Raises:
        ValueError: a bad choice in `config`, or a size that neither arguments nor data set give.
    """
    config = resolve(config)
    if classes is None or in_channels is None:
        usual_classes, usual_channels = lookup("data set", _SHAPES, config.dataset)
        classes = usual_classes if classes is None else classes
        in_channels = usual_channels if in_channels is None else in_channels
    if min(classes, in_channels) < 1:
        raise ValueError(f"classes and in_channels must be at least 1, got {classes} and {in_channels}")
    with torch.random.fork_rng(devices=[]):
        return dctps.report(build_network(config, classes, in_channels, torch.device("cpu")))
