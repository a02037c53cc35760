"""A plain training loop, optimizers with parameter groups, and learning-rate schedules."""

from dctps.training.loop import Metrics, NonFiniteLoss, Precision, Tally, TrainingError, evaluate, train_epoch
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
    "evaluate",
    "joined",
    "launched",
    "parameter_groups",
    "train_epoch",
]
