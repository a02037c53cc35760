"""The network that a configuration describes: a new one, or the one in a run's file."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dctps
from dctps.checkpoint import load_state
from dctps.data import Description, describe_dataset, list_datasets
from dctps.dynamic import Dynamics, find_dynamics
from dctps.experiments.config import ResolvedConfig, RunConfig, resolve
from dctps.experiments.options import arguments_of, option_of_run
from dctps.models import build_model, list_models
from dctps.names import lookup
from dctps.networks import (
    freeze_except_norms_,
    fuse_,
    plain_norms_,
    remove_biases_,
    share_norms_,
    zero_head_,
)
from dctps.networks.explanation import Explanation
from dctps.offsets import list_offsets
from dctps.reporting import Report
from dctps.selection.allocation import list_allocations
from dctps.selection.criteria.registry import CRITERIA, list_criteria
from dctps.training import Precision, Processes
from dctps.training.optim import SCHEDULES


def is_scored(config: ResolvedConfig) -> bool:
    """Whether a criterion chooses weights, so that the dense network must exist."""
    return not _is_drawn(config)


def _is_drawn(config: ResolvedConfig, *more: str) -> bool:
    """Whether criterion and allocation need neither weights nor data, or are among `more`."""
    return {config.criterion, config.allocation} <= {None, "random", *list_allocations(), *more}


def build_network(
    config: ResolvedConfig,
    data: Description,
    device: torch.device,
    *,
    batches: Iterable[Any] | None = None,
    supports: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network of `config` for `data`, initialised from `config.seed` and torch's global generator.

    Criteria may look at `batches`; with `supports`, by layer, no criterion is asked. Where none looks at the
    dense weights, they are never made. Names that are unknown or do not fit the model are a ValueError, as is
    a run that begins with the network of another.
    """
    if config.start is not None:
        raise ValueError(
            f"start {config.start} is the network of another run: begin with that by "
            f"`dctps train --resume FOLDER`"
        )
    if config.projection is not None:
        # Drawn on the CPU, as all that a network is: the same theta_0 as the dense network's.
        model = _begun(plain_network(config, data, "cpu"), config).to(device)
        return dctps.project_(model, density=config.density, projection=config.projection, seed=config.seed)
    # The others have all three or, for the dense network, none.
    if config.density is None or config.offset is None or config.criterion is None:
        model = _begun(plain_network(config, data, "cpu"), config)
        return (freeze_except_norms_(model) if config.method == "norms" else model).to(device)
    scored = is_scored(config)
    model = plain_network(config, data, "cpu" if scored else "meta")
    shuffled = supports is None and option_of_run(config.options, "shuffle")
    dense = copy.deepcopy(model).to(device) if shuffled else None
    model = dctps.sparsify_(
        model.to(device) if scored else model, config.density, offset=config.offset,
        allocation=_with_options(config, config.allocation),
        criterion=_with_options(config, config.criterion) if supports is None else supports,
        alpha=config.alpha, alpha_trainable=config.alpha_trainable, init=config.init,
        loss=getattr(dctps.criteria, option_of_run(config.options, "loss")), batches=batches,
        seed=config.seed, device=device,
    )  # fmt: skip
    return _begun(dctps.shuffle_(model, dense, seed=config.seed) if shuffled else model, config)


def _begun(model: nn.Module, config: RunConfig) -> nn.Module:
    """The network with its classifier as `config` has it begin."""
    return zero_head_(model) if config.zero_head else model


def _with_options(config: ResolvedConfig, name: str | None) -> Any:
    """The criterion or allocation called `name`, as the run's options have it."""
    chosen = arguments_of(config.options, name)
    return partial(CRITERIA[name], **chosen) if chosen and name is not None else name


def restore_network(config: ResolvedConfig, data: Description, file: Path, device: torch.device) -> nn.Module:
    """The network of `config` in the checkpoint `file`, on `device`; nothing is drawn or chosen again."""
    if config.projection is None:
        model = plain_network(config, data, "meta")
    else:
        model = build_network(replace(config, start=None), data, torch.device("cpu"))
    load_state(model, file)
    return model.to(device)


def plain_network(config: RunConfig, data: Description, device: str) -> nn.Module:
    """The dense network, with the norms and biases that `config` leaves it, the norms fused."""
    with torch.device(device):
        model = build_model(config.model, data.classes, data.channels, data.image_size)
    if not config.bias:
        remove_biases_(model)
    if config.norm == "plain":
        plain_norms_(model)
    if config.norm == "shared":
        share_norms_(model)
    return fuse_(model)


def build_dynamics(
    config: ResolvedConfig, model: nn.Module, optimizer: Optimizer, total_steps: int, processes: Processes
) -> Dynamics | None:
    """What changes the supports of `model` in the `total_steps` of `optimizer`; None where they stay."""
    if config.dynamics in (None, "imp"):  # imp changes no support while a level trains
        return None
    assert config.dynamics_end is not None, "resolve() fills it in"
    kind = find_dynamics(config.dynamics)
    offered: dict[str, Any] = {
        "update_interval": config.update_interval,
        "drop_fraction": config.drop_fraction,
        "end": round(config.dynamics_end * total_steps),
        "seed": config.seed,
        "all_reduce": processes.add_ if processes.count > 1 else None,
        "in_data_parallel": True,
    }
    taken = {name: value for name, value in offered.items() if name in signature(kind).parameters}
    return kind(model, optimizer, **taken, **arguments_of(config.options, config.dynamics))


def check_names(configs: Iterable[RunConfig]) -> None:
    """Make sure that all names in the configurations are known; the error gives the nearest."""
    criteria = list_criteria()
    known = {
        "model": list_models(),
        "dataset": list_datasets(),
        "schedule": list(SCHEDULES),
        "offset": list_offsets(),
        "criterion": criteria,
        "allocation": [*list_allocations(), "global", *criteria],
    }
    for config in configs:
        for name, entries in known.items():
            if getattr(config, name) is not None:
                lookup(name, dict.fromkeys(entries), getattr(config, name))


def describe(config: RunConfig, classes: int | None = None, in_channels: int | None = None) -> Report:
    """The report on the network of `config`; errors as for `network_for_report`."""
    return dctps.report(network_for_report(config, classes, in_channels)[1])


def count_weights(model: str, data: Description) -> int:
    """N, the weights of all layers that can be converted, of the network called `model` for `data`."""
    return dctps.report(network_for_report(RunConfig(model=model), data=data)[1]).weights


def network_for_report(
    config: RunConfig,
    classes: int | None = None,
    in_channels: int | None = None,
    *,
    data: Description | None = None,
    file: Path | None = None,
) -> tuple[ResolvedConfig, nn.Module, Description]:
    """The whole configuration, its network on the CPU, and what it is for: no data are read.

    The network is in `file`, a checkpoint, or it is built. Where the data set leaves them open, `data` or
    `classes` and `in_channels` give the sizes. It is a ValueError where they do not, or where data decide the
    weights and there is no file.
    """
    config = resolve(config)
    if file is None and not _is_drawn(config, "global", "magnitude"):
        raise ValueError(
            f"with criterion {config.criterion!r} and allocation {config.allocation!r} the data decide which "
            f"weights train: train it, and give the run's folder"
        )
    data = data or _described(config, classes, in_channels)
    given = {"classes": classes, "channels": in_channels, "image_size": config.image_size}
    data = replace(data, **{name: value for name, value in given.items() if value is not None})
    if min(data.classes, data.channels) < 1:
        raise ValueError(
            f"classes and in_channels must be at least 1, got {data.classes} and {data.channels}"
        )
    if file is not None:
        return config, restore_network(config, data, file, torch.device("cpu")), data
    with torch.random.fork_rng(devices=[]):
        return config, build_network(config, data, torch.device("cpu")), data


def explain_training(config: ResolvedConfig, model: nn.Module, data: Description) -> Explanation:
    """Which paths the layers take in the training of `config`, whose network for `data` is `model`."""
    shape = 2, data.channels, data.image_size, data.image_size
    images = torch.zeros(shape).to(memory_format=torch.channels_last)  # as batches are
    with Precision(config.amp, "cpu").autocast():
        return dctps.explain(model, images, batch_size=config.batch_size)


def _described(config: RunConfig, classes: int | None, in_channels: int | None) -> Description:
    if config.dataset in list_datasets() and (found := describe_dataset(config.dataset)) is not None:
        return found
    if classes is not None and in_channels is not None:
        # Enough for a network by itself; images are then like CIFAR's.
        return Description(classes, in_channels, 32)
    describe_dataset(config.dataset)  # which has more to say on a name that is not there
    raise ValueError(
        f"what {config.dataset!r} is only its files say: give --classes and --in-channels (classes, "
        f"in_channels), and --image-size where it is not 32"
    )
