"""A warning where a trained network is converted in a way that loses its weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor, nn

_WRITTEN = 100  # times, by an optimizer that steps so often; an initialisation writes a tensor once or twice
_APART = 16  # the most that writes of the layers' tensors differ by, as every step writes all of them
_LAYERS = 8  # the largest, which are looked at
_SIDE = 256  # rows and columns of each of them, at most
_FEWEST = 16  # rows and columns with which the largest singular value says something
_LARGE = 1.25  # `spread`: up to 1.04 at initialisation, 1.3 to 2.1 once trained


def warn_of_trained(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Say that the weights of a trained network are about to be lost, and which calls would keep them."""
    if is_trained(layers):
        warnings.warn(
            f"{type(model).__name__} seems to be trained, and this call of sparsify_ does not keep what the "
            f"{len(layers)} converted layers have learned: under an offset S starts at 0, and a random "
            f"choice drops most large weights. To prune the network, pass offset='zero', "
            f"criterion='magnitude'; to train it from the start, convert it before it is trained; to leave "
            f"layers as they are, use filter_fn",
            stacklevel=3,
        )


def is_trained(layers: Mapping[str, nn.Module]) -> bool:
    """Whether the layers' weights are no longer those of an initialisation.

    They are not where all weights and biases were written equally often, as only an optimizer does, or where
    half of the largest weights have a singular value that independent entries do not lead to (`spread`). A
    network goes unnoticed that was trained for a few steps only, or that was loaded from a file and has small
    layers.
    """
    weights = [w for layer in layers.values() if not (w := layer.get_parameter("weight")).is_meta]
    own = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    writes = [p._version for p in own if not p.is_inference()]  # those of an inference tensor are not counted
    stepped = bool(writes) and min(writes) >= _WRITTEN and max(writes) - min(writes) <= _APART
    if stepped and all(int(torch.count_nonzero(w)) == w.numel() for w in weights):
        return True
    weights.sort(key=Tensor.numel, reverse=True)
    spreads = list(islice((s for w in weights if (s := spread(w)) is not None), _LAYERS))
    return bool(spreads) and 2 * sum(s > _LARGE for s in spreads) >= len(spreads)


@torch.no_grad()
def spread(weight: Tensor) -> float | None:
    """sigma_1(W - mean W) / (s (sqrt(m) + sqrt(n))), for independent entries of variance s^2 about 1.

    So it is for every law from which weights are drawn, and below 1 for orthogonal ones; training adds a few
    large singular values. sigma_1 comes from a few power iterations, which never give too large a value, on a
    corner of 256 x 256. A small or an almost constant weight (zeros, ones, an identity) says nothing: None.

    Reference: Marchenko and Pastur 1967; Yin, Bai and Krishnaiah 1988; Martin and Mahoney, "Implicit
    self-regularization in deep neural networks", JMLR 2021.
    """
    w = weight.detach().flatten(1)[:_SIDE, :_SIDE].float()
    if min(w.shape) < _FEWEST or float((w == w.median()).float().mean()) > 0.3:
        return None
    w = w - w.mean()
    v = torch.sin(torch.arange(1.0, w.shape[1] + 1, device=w.device))  # any start, the same each time
    for _ in range(12):
        u = w @ (v / v.norm())
        v = w.T @ u
    return float(u.norm() / (w.std() * sum(map(math.sqrt, w.shape))))
