"""A plain training loop, optimizers with parameter groups, and learning-rate schedules."""

from dctps.training.chain import NotAChain, chain_of
from dctps.training.loop import (
    Metrics,
    NonFiniteLoss,
    Precision,
    Tally,
    TrainingError,
    check_finite,
    evaluate,
    train_epoch,
)
from dctps.training.mixup import Mixup
from dctps.training.optim import build_optimizer, parameter_groups
from dctps.training.parallel import PeerError, PeerLost, Processes, joined, launched
from dctps.training.schedule import build_schedule
from dctps.training.stack import Stack
from dctps.training.stack_native import Losses

__all__ = [
    "Losses",
    "Metrics",
    "Mixup",
    "NonFiniteLoss",
    "NotAChain",
    "PeerError",
    "PeerLost",
    "Precision",
    "Processes",
    "Stack",
    "Tally",
    "TrainingError",
    "build_optimizer",
    "build_schedule",
    "chain_of",
    "check_finite",
    "evaluate",
    "joined",
    "launched",
    "parameter_groups",
    "train_epoch",
]
