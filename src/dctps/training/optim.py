"""Optimizers over groups of parameters, for weight decay and for rates, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from dctps.names import lookup
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer

Groups = list[dict[str, Any]]


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float | None = None,
    decay_alpha: bool = True,
    decay_norm_bias: bool = False,
    leave_out: Iterable[nn.Parameter] = (),
) -> Groups:
    """The trainable parameters of `model`, in groups of one weight decay and one share of the rate.

    The values of a DpS layer are a vector and stand for a matrix: they decay. A rule that exempts whatever
    has one dimension would exempt them.

    A network names what is to learn at another rate than the rest: a module's attribute `lr_scales` maps
    names of parameters, its own or dotted ones of modules below it, to shares of the learning rate. Fixup
    networks ask for a tenth on their scalar biases and scales and the classifier's bias. Values and alphas
    stand for the weights, so they have the whole rate, in those networks too.

    Args:
        model: converted or not; a shared parameter is taken once.
        weight_decay: of the parameters that decay; the others have 0.
        lr: learning rate, of which each group gets its share as `lr`; None leaves it to the optimizer.
        decay_alpha: whether the DpS layers' alphas are decayed.
        decay_norm_bias: whether biases and normalisation layers are: every other parameter of one dimension.
        leave_out: parameters that another optimizer trains, such as matrices by Muon.

    Returns:
        Groups as `build_optimizer` and every optimizer of torch take them, with `weight_decay` and
        `lr_scale`; the whole rate comes first, an empty group is left out.

    Raises:
        ValueError: nothing in the model is trainable, or `lr_scales` names what is not there.
    """
    scales = _lr_scales(model)
    decays: dict[nn.Parameter, bool] = {}
    elsewhere = set(leave_out)
    for module in model.modules():
        is_dps = isinstance(module, DpSLayer)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in elsewhere:
                continue
            if is_dps and name in ("alpha", "values"):
                decay = decay_alpha or name == "values"
            else:
                decay = parameter.ndim > 1 or decay_norm_bias
            decays[parameter] = decays.get(parameter, False) or decay
    if not decays:
        raise ValueError("the model has no trainable parameter: at a higher density, or with alpha, it would")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, decay in decays.items():
        groups.setdefault((scales.get(parameter, 1.0), decay), []).append(parameter)
    return [
        {
            "params": groups[scale, decay],
            "weight_decay": weight_decay if decay else 0.0,
            "lr_scale": scale,
            **({} if lr is None else {"lr": lr * scale}),
        }
        for scale, decay in sorted(groups, key=lambda group: (group[0] != 1, group[0], not group[1]))
    ]


def _lr_scales(model: nn.Module) -> dict[nn.Parameter, float]:
    scales = {}
    for name, module in named_modules(model):
        for path, scale in getattr(module, "lr_scales", {}).items():
            where = f"lr_scales of {name or 'the model'!r} ({type(module).__name__})"
            try:
                parameter = module.get_parameter(path)
            except AttributeError:
                raise ValueError(f"{where} names {path!r}, which is no parameter of it") from None
            if not 0 < scale < math.inf:
                raise ValueError(f"{where} must be above 0 and finite, got {scale} for {path!r}")
            scales[parameter] = float(scale)
    return scales


def build_optimizer(
    name: str, groups: Groups, *, lr: float, momentum: float = 0.9, nesterov: bool = False
) -> Optimizer:
    """The optimizer called `name`: `"sgd"`, `"adam"` (L2 in the gradient) or `"adamw"` (decoupled decay).

    Args:
        name: of the optimizer.
        groups: from `parameter_groups`.
        lr: learning rate, > 0; a group has its `lr_scale` of it.
        momentum: of SGD, in [0, 1); Adam and AdamW have beta = (0.9, 0.999).
        nesterov: Nesterov's momentum, for SGD.

    Raises:
        ValueError: an unknown name.
    """
    kind = lookup("optimizer", _OPTIMIZERS, name)
    rated = [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    options = {"momentum": momentum, "nesterov": nesterov} if name == "sgd" else {}
    # Fused: on the many small parameters of a sparse network a step takes a quarter of the time, on CPU too.
    return kind(rated, lr=lr, fused=True, **options)


_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_schedule(
    name: str, optimizer: Optimizer, *, total_steps: int, milestones: Sequence[float] = (0.6, 0.8)
) -> LRScheduler:
    """The schedule called `name`, of the learning rates that `optimizer` has now.

    - `"constant"`: that rate throughout.
    - `"multistep"`: a tenth of it from each milestone on.
    - `"cosine"`: from that rate down to 0 along half a cosine.
    - `"onecycle"`: up from 1/25 of it over the first 30% of the steps, then down to 4e-6 of it, both along a
      cosine; momentum and betas stay as they are.

    Args:
        name: of the schedule.
        optimizer: its rates become the base (constant, multistep, cosine) or the peak (onecycle).
        total_steps: optimizer steps of the whole run, >= 1.
        milestones: shares of the run, in (0, 1), rising: 0.6 of 20 epochs is the end of epoch 12. As shares
            they keep their meaning when the number of epochs changes.

    Raises:
        ValueError: an unknown name.
    """
    return lookup("schedule", SCHEDULES, name)(optimizer, total_steps, milestones)


SCHEDULES: dict[str, Callable[[Optimizer, int, Sequence[float]], LRScheduler]] = {
    "constant": lambda optimizer, steps, milestones: ConstantLR(optimizer, factor=1.0, total_iters=0),
    "multistep": lambda optimizer, steps, milestones: MultiStepLR(
        optimizer, [round(share * steps) for share in milestones], gamma=0.1
    ),
    "cosine": lambda optimizer, steps, milestones: CosineAnnealingLR(optimizer, steps),
    "onecycle": lambda optimizer, steps, milestones: OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, cycle_momentum=False
    ),
}
