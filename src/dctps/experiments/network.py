"""The network that a configuration describes."""

from __future__ import annotations

import torch
from torch import nn

import dctps
from dctps.experiments.config import RunConfig
from dctps.models import build_model
from dctps.nn import DpSConv2d, DpSLinear


def build_network(config: RunConfig, classes: int, in_channels: int, device: torch.device) -> nn.Module:
    """The network of `config`, initialised from `config.seed` and torch's global generator, on `device`.

    Where neither criterion nor alpha looks at the dense weights, they are never made.

    Args:
        config: resolved.
        classes: of the data set.
        in_channels: of its images.
        device: where the network is to be.

    Raises:
        ValueError: an unknown model, offset, allocation or criterion, or a choice that does not fit the model.
    """
    if config.density is None:
        return build_model(config.model, classes, in_channels).to(device)
    weightless = config.criterion == "random" and config.alpha != "match"
    with torch.device("meta" if weightless else "cpu"):
        model = build_model(config.model, classes, in_channels)
    model = dctps.sparsify_(
        model if weightless else model.to(device),
        config.density,
        offset=config.offset,
        allocation=config.allocation,
        criterion=config.criterion,
        alpha=config.alpha,
        seed=config.seed,
        device=device,
    )
    for module in model.modules():
        if isinstance(module, DpSLinear | DpSConv2d) and module.alpha is not None:
            module.alpha.requires_grad_(config.alpha_trainable)
    return model
