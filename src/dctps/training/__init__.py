"""A plain training loop, optimizers with parameter groups, and learning-rate schedules."""

from importlib import import_module
from typing import Any

from dctps.training.graph import GraphedPass as GraphedPass
from dctps.training.loop import Metrics as Metrics
from dctps.training.loop import NonFiniteLoss as NonFiniteLoss
from dctps.training.loop import Precision as Precision
from dctps.training.loop import Tally as Tally
from dctps.training.loop import TrainingError as TrainingError
from dctps.training.loop import check_finite as check_finite
from dctps.training.loop import check_sums as check_sums
from dctps.training.loop import evaluate as evaluate
from dctps.training.loop import pass_once as pass_once
from dctps.training.loop import take_step as take_step
from dctps.training.loop import train_epoch as train_epoch
from dctps.training.mixup import Mixup as Mixup
from dctps.training.optim import build_optimizer as build_optimizer
from dctps.training.optim import build_schedule as build_schedule
from dctps.training.optim import parameter_groups as parameter_groups
from dctps.training.parallel import PeerError as PeerError
from dctps.training.parallel import PeerLost as PeerLost
from dctps.training.parallel import Processes as Processes
from dctps.training.parallel import joined as joined
from dctps.training.parallel import launched as launched


def __getattr__(name: str) -> Any:
    if name in ("Losses", "NotAChain", "Stack", "chain_of"):  # where they were before they had a package
        return getattr(import_module("dctps.stacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
