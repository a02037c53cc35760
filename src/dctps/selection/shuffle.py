"""An ablation: the same number of weights in each layer, somewhere else."""

from __future__ import annotations

import math

import torch
from torch import nn

from dctps.arguments import whole
from dctps.counter import derive_key, sample
from dctps.initial import FanInLaw
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer


def shuffle_(model: nn.Module, dense: nn.Module | None = None, *, seed: int = 0) -> nn.Module:
    """Move each layer's support to as many random positions, in place.

    If the network trains as well afterwards, its layers' densities were what mattered, and not which weights
    were chosen. For a criterion's own choice that is `sparsify_(..., allocation="synflow",
    criterion="random")`, which needs no dense network beside it.

    Args:
        model: converted; layers that stayed dense are left alone.
        dense: the network as it was before it was converted: from it come the values at the new positions of
            layers without an offset, except those of `init="fan-in"`, which are drawn for the new positions.
            Under an offset values go along, in their order: at the start all are 0.
        seed: of the positions, each layer's own by its name.

    Returns:
        the model.

    Raises:
        ValueError: a layer without an offset, and no dense weight of its shape to take values from.

    Reference: Frankle, Dziugaite, Roy and Carbin, "Pruning Neural Networks at Initialization: Why are we
    missing the mark?", ICLR 2021.
    """
    seed = whole("seed", seed)
    weights = {} if dense is None else {name: getattr(m, "weight", None) for name, m in named_modules(dense)}
    layers = {name: m for name, m in named_modules(model) if isinstance(m, DpSLayer)}
    for name, layer in layers.items():
        found = weights.get(name)
        keeps = layer.alpha is None and not isinstance(layer.weight_law, FanInLaw)
        if keeps and (found is None or tuple(found.shape) != layer.offset.shape):
            raise ValueError(
                f"layer {name!r} has no offset, so its values at new positions are the dense network's: pass "
                f"as `dense` a copy of the network from before it was converted"
            )
    with torch.no_grad():
        for name, layer in layers.items():
            key = derive_key(seed, name, "shuffle")
            layer.support.copy_(sample(key, layer.nnz, math.prod(layer.offset.shape), device="cpu"))
            layer._given_support = True
            layer.seal()
            if isinstance(layer.weight_law, FanInLaw):
                layer.values.copy_(layer.weight_law.draw(layer.seed, name, "values", layer.support))
            elif layer.alpha is None:
                layer.values.copy_(weights[name].detach().reshape(-1)[layer.support.to(weights[name].device)])  # type: ignore[union-attr]
    return model
