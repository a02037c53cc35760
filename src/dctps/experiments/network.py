"""The network that a configuration describes."""

from __future__ import annotations

import torch
from torch import nn

import dctps
from dctps.experiments.config import RunConfig, resolve
from dctps.models import build_model
from dctps.names import lookup
from dctps.reporting import Report

# Classes, channels and pixels a side of the data sets that come with dctps: a report needs no data files.
_SHAPES = {"digits": (10, 1, 32), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32)}


def build_network(
    config: RunConfig, classes: int, in_channels: int, image_size: int, device: torch.device
) -> nn.Module:
    """The network of `config`, initialised from `config.seed` and torch's global generator, on `device`.

    Where the criterion does not look at the dense weights, they are never made.

    Args:
        config: resolved.
        classes: of the data set.
        in_channels: of its images.
        image_size: their height and width.
        device: where the network is to be.

    Raises:
        ValueError: an unknown model, offset, allocation or criterion, or one that does not fit the model;
            or images that the model does not take.
    """
    # A resolved configuration has all three or, for the dense network, none.
    if config.density is None or config.offset is None or config.criterion is None:
        return build_model(config.model, classes, in_channels, image_size).to(device)
    weightless = config.criterion == "random"
    with torch.device("meta" if weightless else "cpu"):
        model = build_model(config.model, classes, in_channels, image_size)
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


def describe(
    config: RunConfig,
    classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> Report:
    """The report on the network of `config`, from a build of its own: no data are read.

    Args:
        config: what to build.
        classes: outputs (None: those of the data set).
        in_channels: of the images (None: those of the data set).
        image_size: their height and width (None: those of the data set, or 32 for an unknown one).

    Raises:
        ValueError: a bad choice in `config`, or a size that neither arguments nor data set give.
    """
    config = resolve(config)
    if classes is None or in_channels is None:
        usual = lookup("data set", _SHAPES, config.dataset)
    else:
        usual = _SHAPES.get(config.dataset, (classes, in_channels, 32))
    given = (classes, in_channels, image_size)
    classes, in_channels, image_size = (
        theirs if ours is None else ours for ours, theirs in zip(given, usual, strict=True)
    )
    if min(classes, in_channels, image_size) < 1:
        raise ValueError(
            f"classes, in_channels and image_size must be at least 1, "
            f"got {classes}, {in_channels} and {image_size}"
        )
    with torch.random.fork_rng(devices=[]):
        model = build_network(config, classes, in_channels, image_size, torch.device("cpu"))
        return dctps.report(model)
