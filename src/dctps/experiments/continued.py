"""More epochs for a finished run: a run of its own that begins with the network of the other.

A schedule of the learning rate is made for its epochs, so that a finished run has no later epoch: a one-cycle
schedule has come down to almost 0. The further epochs are therefore a second training. It begins with the
network after the last epoch, with new state of the optimizer, and goes through its own schedule, dynamics and
random stream from their beginning. `RunConfig.start` is the first half of the SHA-256 of the network's file,
so that what the run is depends on nothing but numbers. This module imports torch only where it trains.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dctps.experiments import records
from dctps.experiments.config import RunConfig, differences, resolve

if TYPE_CHECKING:
    import torch

    from dctps.data import Dataset
    from dctps.experiments.session import Session
    from dctps.training import Processes

# What the network is, which the file decides.
_OF_NETWORK = (
    "model", "method", "density", "seed", "offset", "allocation", "criterion", "alpha", "alpha_trainable",
    "init", "zero_head", "norm", "bias", "projection",
)  # fmt: skip


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is finished; a `RunFolderError` where there is none."""
    records.read_config(folder)
    return records.find_summary(folder) is not None


def continuing(folder: Path) -> RunConfig:
    """The run that continues the finished one in `folder` with as many epochs again.

    Raises:
        ValueError: no run, a run of imp, or a file that cannot be read.
    """
    config = records.read_config(folder)
    if resolve(config).dynamics == "imp":
        raise ValueError(
            f"the run in {folder} is of imp, whose levels are trainings of their own: more epochs are a "
            f"run with other --epochs"
        )
    return replace(config, start=_digest(folder))


def check_continued(folder: Path, config: RunConfig) -> None:
    """Make sure that `config` is of the network in `folder`, as that is now.

    Raises:
        ValueError: it describes another network, or the file has changed.
    """
    theirs = records.read_config(folder)
    changed = differences(resolve(config), resolve(theirs))
    for name in _OF_NETWORK:
        if name in changed:
            here, there = changed[name]
            raise ValueError(
                f"{name} {here} is of another network than that in {folder}, which has {there}: leave it out"
            )
    if config.start != _digest(folder):
        raise ValueError(f"the network in {folder} is not the one that the run began with: restore it")


def begin_from(
    folder: Path, config: RunConfig, dataset: Dataset, device: torch.device, processes: Processes
) -> Session:
    """The session that begins with the network in `folder`, for `run(..., begin=...)`."""
    from dctps.experiments.network import restore_network  # noqa: PLC0415
    from dctps.experiments.session import Session  # noqa: PLC0415
    from dctps.experiments.trained import facts_of  # noqa: PLC0415
    from dctps.networks import freeze_except_norms_  # noqa: PLC0415

    check_continued(folder, config)
    shape, _ = facts_of(folder)
    if shape != dataset.description:
        raise ValueError(f"the network in {folder} is for {shape}, and the data are {dataset.description}")
    own = resolve(config)
    model = restore_network(own, shape, folder / records.LAST, device)
    if own.method == "norms":
        freeze_except_norms_(model)
    return Session(own, dataset, device, processes, model=model)


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / records.LAST).read_bytes()).hexdigest()[:32]
    except FileNotFoundError:
        raise records.damaged(folder / records.LAST, "it is missing") from None
    except OSError as error:
        raise records.unreadable(folder / records.LAST, error) from None
