"""A plain training loop, optimizers with parameter groups, and learning-rate schedules."""

from importlib import import_module
from typing import Any

from dctps.training.loop import (
    Metrics,
    NonFiniteLoss,
    Precision,
    Tally,
    TrainingError,
    check_finite,
    evaluate,
    take_step,
    train_epoch,
)
from dctps.training.mixup import Mixup
from dctps.training.optim import build_optimizer, parameter_groups
from dctps.training.parallel import PeerError, PeerLost, Processes, joined, launched
from dctps.training.schedule import build_schedule

__all__ = [
    "Metrics",
    "Mixup",
    "NonFiniteLoss",
    "PeerError",
    "PeerLost",
    "Precision",
    "Processes",
    "Tally",
    "TrainingError",
    "build_optimizer",
    "build_schedule",
    "check_finite",
    "evaluate",
    "joined",
    "launched",
    "parameter_groups",
    "take_step",
    "train_epoch",
]


def __getattr__(name: str) -> Any:
    if name in ("Losses", "NotAChain", "Stack", "chain_of"):  # where they were before they had a package
        return getattr(import_module("dctps.stacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
