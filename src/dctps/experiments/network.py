"""The network that a configuration describes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import dctps
from dctps.data import Description, describe_dataset, list_datasets
from dctps.experiments.config import RunConfig, resolve
from dctps.models import build_model
from dctps.nn import plain_norms_, remove_biases_, share_norms_
from dctps.reporting import Report


def build_network(config: RunConfig, data: Description, device: torch.device) -> nn.Module:
    """The network of `config`, initialised from `config.seed` and torch's global generator, on `device`.

    Where the criterion does not look at the dense weights, they are never made.

    Args:
        config: resolved.
        data: what the network is for.
        device: where the network is to be.

    Raises:
        ValueError: an unknown model, offset, allocation, criterion or projection, or one that does not fit
            the model; or images that the model does not take.
    """
    network = _layers(config, data, device)
    if not config.bias:
        remove_biases_(network)
    if config.norm == "plain":
        plain_norms_(network)
    if config.norm == "shared":
        share_norms_(network)
    if config.projection is None:
        return network
    return dctps.project_(network, density=config.density, projection=config.projection, seed=config.seed)


def _layers(config: RunConfig, data: Description, device: torch.device) -> nn.Module:
    # A resolved configuration has all three or, where the dense network is made, none.
    if config.density is None or config.offset is None or config.criterion is None:
        return build_model(config.model, data.classes, data.channels, data.image_size).to(device)
    weightless = config.criterion == "random"
    with torch.device("meta" if weightless else "cpu"):
        model = build_model(config.model, data.classes, data.channels, data.image_size)
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
    *,
    data: Description | None = None,
) -> Report:
    """The report on the network of `config`, from a build of its own: no data are read.

    Args:
        config: what to build.
        classes: outputs (None: those of the data set).
        in_channels: of the images (None: those of the data set).
        data: of the run (None: what the data set's name stands for).

    Raises:
        ValueError: a bad choice in `config`, or a size that neither arguments nor data set give.
    """
    config = resolve(config)
    data = data or _described(config, classes, in_channels)
    given = {"classes": classes, "channels": in_channels, "image_size": config.image_size}
    data = replace(data, **{name: value for name, value in given.items() if value is not None})
    if min(data.classes, data.channels) < 1:
        raise ValueError(
            f"classes and in_channels must be at least 1, got {data.classes} and {data.channels}"
        )
    with torch.random.fork_rng(devices=[]):
        return dctps.report(build_network(config, data, torch.device("cpu")))


def _described(config: RunConfig, classes: int | None, in_channels: int | None) -> Description:
    if config.dataset in list_datasets() and (found := describe_dataset(config.dataset)) is not None:
        return found
    if classes is not None and in_channels is not None:
        # Enough for a network by itself; images are then like CIFAR's.
        return Description(classes, in_channels, 32)
    describe_dataset(config.dataset)  # which has more to say on a name that is not there
    raise ValueError(
        f"what {config.dataset!r} is only its files say: give --classes and --in-channels (classes, "
        f"in_channels), and --image-size where it is not 32"
    )
