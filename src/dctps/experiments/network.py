"""The network that a configuration describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dctps
from dctps.checkpoint import load_state
from dctps.experiments.config import RunConfig, resolve
from dctps.models import build_model
from dctps.names import lookup
from dctps.reporting import Report

# Classes and channels of the data sets that come with dctps, so that a report needs no data files.
_SHAPES = {"digits": (10, 1), "cifar10": (10, 3), "cifar100": (100, 3)}


# Neither the weights nor any data decide with these.
_DRAWN = (None, "random", "uniform", "epl", "epf", "erk")


def is_scored(config: RunConfig) -> bool:
    """Whether a criterion chooses weights, so that the dense network must exist; `config` is resolved."""
    return config.criterion not in _DRAWN or config.allocation not in _DRAWN


def empty_network(config: RunConfig, classes: int, in_channels: int) -> nn.Module:
    """The network of `build_network` not yet converted, on the meta device, for a file to fill."""
    with torch.device("meta"):
        return build_model(config.model, classes, in_channels)


def build_network(
    config: RunConfig,
    classes: int,
    in_channels: int,
    device: torch.device,
    *,
    batches: Iterable[Any] | None = None,
    supports: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network of `config`, initialised from `config.seed` and torch's global generator, on `device`.

    Where neither criterion nor alpha looks at the dense weights, they are never made.

    Args:
        config: resolved.
        classes: of the data set.
        in_channels: of its images.
        device: where the network is to be.
        batches: for criteria that look at data.
        supports: by layer, already chosen; no criterion is then asked.

    Raises:
        ValueError: an unknown model, offset, allocation or criterion, or one that does not fit the model.
    """
    # A resolved configuration has all three or, for the dense network, none.
    if config.density is None or config.offset is None or config.criterion is None:
        return build_model(config.model, classes, in_channels).to(device)
    weightless = not is_scored(config) and config.alpha != "match"
    with torch.device("meta" if weightless else "cpu"):
        model = build_model(config.model, classes, in_channels)
    return dctps.sparsify_(
        model if weightless else model.to(device),
        config.density,
        offset=config.offset,
        allocation=config.allocation,
        criterion=config.criterion if supports is None else supports,
        alpha=config.alpha,
        alpha_trainable=config.alpha_trainable,
        batches=batches,
        seed=config.seed,
        device=device,
    )


def describe(
    config: RunConfig,
    classes: int | None = None,
    in_channels: int | None = None,
    *,
    file: Path | None = None,
) -> Report:
    """The report on the network of `config`, from a build of its own: no data are read.

    Args:
        config: what to build.
        classes: outputs (None: those of the data set).
        in_channels: of the images (None: those of the data set).
        file: a checkpoint of the run, which says what a criterion chose.

    Raises:
        ValueError: a bad choice in `config`, one that data decide and no file, or a size that neither
            arguments nor data set give.
    """
    config = resolve(config)
    if file is None and not {config.criterion, config.allocation} <= {*_DRAWN, "global", "magnitude"}:
        raise ValueError(
            f"with criterion {config.criterion!r} and allocation {config.allocation!r} the data decide which "
            f"weights train: train it, and give the run's folder"
        )
    if classes is None or in_channels is None:
        usual_classes, usual_channels = lookup("data set", _SHAPES, config.dataset)
        classes = usual_classes if classes is None else classes
        in_channels = usual_channels if in_channels is None else in_channels
    if min(classes, in_channels) < 1:
        raise ValueError(f"classes and in_channels must be at least 1, got {classes} and {in_channels}")
    if file is not None and is_scored(config):
        model = empty_network(config, classes, in_channels)
        load_state(model, file)
        return dctps.report(model)
    with torch.random.fork_rng(devices=[]):
        return dctps.report(build_network(config, classes, in_channels, torch.device("cpu")))
