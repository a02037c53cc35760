"""Choices without effect beside another choice: refused, rather than ignored, when a run is asked for.

`resolve` lets them pass, so that run folders of any age can be read, and two runs that differ in them alone
are the same run. This module does not import torch.
"""

from __future__ import annotations

from typing import Any

from dctps.experiments.config import RunConfig, differences, resolve
from dctps.experiments.methods import METHODS


def unused(config: RunConfig) -> dict[str, str]:
    """Fields that have no effect on the run of `config`, whatever their values, each with the reason."""
    run = resolve(config)
    has_alpha = run.offset not in (None, "zero")
    no_alpha = f"the method {run.method!r} has {'no offset' if run.offset is None else 'the offset zero'}"
    share = "no" if run.method == "norms" else "every"
    draws = run.offset == "zero" and run.dynamics != "imp"
    start = "S starts at 0" if has_alpha else "weights start from the dense initialisation"
    effects = {
        "density": (has_density(run.method), f"the method {run.method!r} trains {share} weight"),
        "momentum": (run.optimizer == "sgd", f"the optimizer {run.optimizer} has none; sgd has"),
        "milestones": (run.schedule == "multistep", f"the schedule {run.schedule} has none; multistep has"),
        "flip": (run.augment, "it is part of the augmentation, which this run does without; see augment"),
        "alpha": (has_alpha, no_alpha),
        "alpha_trainable": (has_alpha, no_alpha),
        "zero_head": (run.method != "norms", "the classifier does not train"),
        "init": (draws, f"{start}, under the method {run.method!r}"),
        "decay_alpha": (has_alpha and run.alpha_trainable, "alpha does not train" if has_alpha else no_alpha),
    }
    return {name: reason for name, (has_effect, reason) in effects.items() if not has_effect}


def has_density(method: Any) -> bool:
    """Whether a method has one; true of an unknown method, so that its name is what is refused."""
    choices = METHODS.get(method) if isinstance(method, str) else None
    return choices is None or choices.offset is not None or choices.projection is not None


def refuse_unused(config: RunConfig) -> None:
    """Raise a ValueError where `config` has a choice, other than the default, without an effect.

    A choice that switches off what is not there, such as a momentum of 0, is allowed.
    """
    reasons = unused(config)
    for name, (value, _) in differences(config, RunConfig()).items():
        if (value or name == "density") and value is not None and name in reasons:
            raise ValueError(f"{name} {value} would have no effect ({reasons[name]}): leave it out")
    if config.criterion == "nonzero" and config.density != 1:
        raise ValueError(
            f"criterion 'nonzero' takes every weight that is not 0, whatever the density, and got "
            f"density {config.density}: give density 1, or a criterion that ranks, such as magnitude"
        )
