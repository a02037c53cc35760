"""SGD, Adam and AdamW over parameter groups that say what weight decay reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dctps.names import lookup
from dctps.nn import DpSLayer

Groups = list[dict[str, Any]]


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_alpha: bool = True, decay_norm_bias: bool = True
) -> Groups:
    """The trainable parameters of `model` in at most two groups: with weight decay, and without.

    Args:
        model: converted or not; a shared parameter is taken once.
        weight_decay: of the first group; the second has 0.
        decay_alpha: whether the DpS layers' alphas are decayed.
        decay_norm_bias: whether biases and normalisation layers are: every other parameter of one dimension.

    Returns:
        Groups as torch's optimizers take them; an empty one is left out.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    decayed: dict[nn.Parameter, None] = {}
    spared: dict[nn.Parameter, None] = {}
    for module in model.modules():
        is_dps = isinstance(module, DpSLayer)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if is_dps and name == "alpha":
                spare = not decay_alpha
            elif is_dps and name == "values":
                spare = False
            else:
                spare = parameter.ndim <= 1 and not decay_norm_bias
            (spared if spare else decayed)[parameter] = None
    groups: Groups = [
        {"params": list(decayed), "weight_decay": weight_decay},
        {"params": [p for p in spared if p not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter: at a higher density, or with alpha, it would")
    return groups


def build_optimizer(
    name: str, groups: Groups, *, lr: float, momentum: float = 0.9, nesterov: bool = False
) -> Optimizer:
    """The optimizer called `name`: `"sgd"`, `"adam"` (L2 in the gradient) or `"adamw"` (decoupled decay).

    Args:
        name: of the optimizer.
        groups: from `parameter_groups`.
        lr: learning rate, > 0.
        momentum: of SGD, in [0, 1); Adam and AdamW have beta = (0.9, 0.999).
        nesterov: Nesterov's momentum, for SGD.

    Raises:
        ValueError: an unknown name.
    """
    return lookup("optimizer", _OPTIMIZERS, name)(groups, lr, momentum, nesterov)


# Fused: on the many small parameters of a sparse network a step takes a quarter of the time, on CPU too.
def _sgd(groups: Groups, lr: float, momentum: float, nesterov: bool) -> Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def _adam(groups: Groups, lr: float, momentum: float, nesterov: bool) -> Optimizer:
    return torch.optim.Adam(groups, lr=lr, fused=True)


def _adamw(groups: Groups, lr: float, momentum: float, nesterov: bool) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=True)


_OPTIMIZERS: dict[str, Callable[[Groups, float, float, bool], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}
