"""Iterative magnitude pruning: train, prune, rewind, train again, until K weights are left.

Every level is an ordinary run in a folder of its own, `level0`, `level1`, ..., within the folder of the run.
Level 0 is the run of the dense network. At the end of each level the smallest |weights| of the whole network
are dropped. The others are put back to what they were at the rewinding point of level 0, together with
everything else that training depends on: norms, optimizer slots, learning rate, loss scaler and the data's
random stream (`rewind.safetensors` holds all of it). From level 1 on the network is a sparse one, with the
zero offset, that holds and trains the remaining weights alone. The folder of the run has the metrics of all
levels and the network of the last one.

Reference: Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; Frankle et al., "Linear Mode
Connectivity and the Lottery Ticket Hypothesis", ICML 2020 (rewinding).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import dctps
from dctps.data import Dataset
from dctps.experiments.config import ResolvedConfig, resolve
from dctps.experiments.folder import REWIND, STATE, RunFolder
from dctps.experiments.network import count_weights, plain_network, restore_network
from dctps.experiments.parts import split
from dctps.experiments.records import BEST, LAST, Record, RunFolderError, read_metrics
from dctps.experiments.session import Session
from dctps.experiments.settings import environment_of
from dctps.experiments.state import State, StateError, read_state, write_state
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer
from dctps.selection.criteria.ranking import keep_largest
from dctps.sparse import budget
from dctps.training import Processes

_CPU = torch.device("cpu")


class Levels:
    """The levels of a run of `--method imp`; `weights` is N, of all layers that can be converted."""

    def __init__(
        self, config: ResolvedConfig, folder: RunFolder, dataset: Dataset, processes: Processes
    ) -> None:
        assert config.levels is not None and config.rewind_epoch is not None, "resolve() fills them in"
        assert config.density is not None, "resolve() asks for it"
        self.config, self.last, self.rewind_epoch = config, config.levels, config.rewind_epoch
        self._density = config.density
        self._folder, self._dataset, self._processes = folder, dataset, processes
        self._writes = processes.rank == 0
        self.weights = count_weights(config.model, dataset.description)

    def complete(self, train: Callable[..., Record], on_epoch: Callable[[Record], None]) -> None:
        """Do what is left of all levels by `train`, and finish the run, whose folder process 0 holds.

        `train` is `experiments.run.run` on the same data and machine; `on_epoch` is called with the record of
        each epoch, numbered through all levels.
        """
        summaries = []
        for level in range(self.last + 1):
            begin, follow = partial(self._begin, level), partial(self._follow, level, on_epoch)
            config = self.config_of(level)
            summaries.append(train(config, out=self.path(level), begin=begin, on_epoch=follow))
        if self._writes:
            self._finish(summaries)

    def _follow(self, level: int, on_epoch: Callable[[Record], None], record: Record) -> None:
        if self._writes:
            if (level, record["epoch"]) == (0, self.rewind_epoch):
                self._keep_rewinding_point()
            self._folder.save_metrics(self.records(level))
        on_epoch(self._numbered(level, record))

    def path(self, level: int) -> Path:
        """The folder of a level."""
        return self._folder.path / f"level{level}"

    def nnz(self, level: int) -> int | None:
        """How many weights a level trains; None: all, in the dense network of level 0."""
        return level_nnz(self._density, self.weights, level, self.last) if level else None

    def config_of(self, level: int) -> ResolvedConfig:
        """The run that a level is."""
        plain = replace(self.config, dynamics=None, levels=None, rewind_epoch=None)
        nnz = self.nnz(level)
        if nnz is None:
            return resolve(
                replace(plain, method="dense", density=None, offset=None, allocation=None, criterion=None)
            )
        # Of N weights this density's budget is nnz exactly: the quotient's error is far below a half.
        return resolve(replace(plain, method="magnitude", density=nnz / self.weights))

    def records(self, level: int) -> list[Record]:
        """The records of all epochs of levels 0 to `level`, each with its level and nnz, numbered through."""
        records = []
        for each in range(level + 1):
            skipped = self.rewind_epoch if each else 0  # level 0 has trained them for all levels
            records += [self._numbered(each, record) for record in read_metrics(self.path(each))[skipped:]]
        return records

    def _through(self, level: int, epoch: int) -> int:
        """The number of a level's epoch over all levels; each but the first begins at the rewinding point."""
        return level * (self.config.epochs - self.rewind_epoch) + epoch

    def _numbered(self, level: int, record: Record) -> Record:
        number = record["epoch"]
        numbers = {"epoch": self._through(level, number), "level": level, "of_level": number}
        return {**record, **numbers, "nnz": self.nnz(level)}

    def _begin(self, level: int, dataset: Dataset, device: torch.device, processes: Processes) -> Session:
        """The session of a level before its first step."""
        config = self.config_of(level)
        if level == 0:
            session = Session(config, dataset, device, processes)
            if self._writes:  # only now: a mistake found before here leaves nothing behind
                self._describe(session)
            return session
        supports = processes.from_first(lambda: self._supports(level))
        supports = {name: support.to(device) for name, support in supports.items()}
        try:
            rewound = processes.from_first(lambda: read_state(self._folder.path / REWIND))
            model = plain_network(config, dataset.description, "cpu").to(device)
            model.load_state_dict(rewound["model"])
            model = dctps.sparsify_(model, offset="zero", criterion=supports, seed=config.seed)
            session = Session(config, dataset, device, processes, model=model)
            session.load_state(_on_support(rewound, session))
        except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise self._folder.damaged(error, REWIND) from None
        return session

    def _describe(self, session: Session) -> None:
        """Write down what the run is, and the rewinding point if that is reached."""
        self._folder.describe(self._dataset.to_dict())
        if (self._folder.path / STATE).exists():
            raise RunFolderError(
                f"{self._folder.path} was begun by an earlier version of dctps, which had no folder for each "
                f"level: choose another --out, or delete it to train again from the beginning"
            )
        if self.rewind_epoch == 0 and not (self._folder.path / REWIND).exists():
            write_state(self._folder.path / REWIND, session.state())
        self._keep_rewinding_point()  # a process that was killed may have come so far

    def _supports(self, level: int) -> dict[str, Tensor]:
        """The supports of a level, from the weights at the end of the one before; ties to the earlier."""
        before, count = level - 1, self.nnz(level)
        assert count is not None, "level 0 keeps all"
        model = self._network(before, LAST)
        if before == 0:  # every weight of the layers that can be converted
            model = dctps.sparsify_(model, 1.0, offset="zero", criterion="magnitude")
        layers = {name: module for name, module in named_modules(model) if isinstance(module, DpSLayer)}
        kept = keep_largest({name: layer.values.detach().abs() for name, layer in layers.items()}, count)
        return {name: layers[name].support[which] for name, which in kept.items()}

    def _network(self, level: int, file: str) -> nn.Module:
        return restore_network(
            self.config_of(level), self._dataset.description, self.path(level) / file, _CPU
        )

    def _keep_rewinding_point(self) -> None:
        """Write down the saved state of level 0, if that stands at the rewinding point."""
        with suppress(FileNotFoundError, StateError):  # a damaged state is refused where the level begins
            session = read_state(self.path(0) / STATE)["session"]
            if (len(session["records"]), session["epoch"]["tally"]["steps"]) == (self.rewind_epoch, 0):
                write_state(self._folder.path / REWIND, session)

    def _finish(self, summaries: list[Record]) -> None:
        """Write what the folder of a run holds: the network of the last level, and the cost of all."""
        records, last = self.records(self.last), summaries[-1]
        numbers: Record = {"last_epoch": None, "best_epoch": None}
        for name, file in (("last_epoch", LAST), ("best_epoch", BEST)):
            if last[name] is not None:
                numbers[name] = self._through(self.last, last[name])
                self._folder.save_model(self._network(self.last, file), file, numbers[name])
        self._folder.save_metrics(records)
        steps = math.ceil(len(split(self.config, self._dataset, _CPU).train) / self.config.batch_size)
        ends = {record["level"]: record for record in records}
        shown = ("level", "nnz", "val_accuracy", "test_accuracy")
        cost = {
            "epochs_trained": len(records),
            "steps_trained": len(records) * steps,
            "levels": [{name: record[name] for name in shown} for record in ends.values()],
        }
        # The dense network of level 0 has no layers for native code, whatever there is.
        summaries[0] |= {"kernels": last["kernels"]}
        names = (*environment_of(_CPU, self._processes, self.config), "backends")
        environments = []
        for summary in summaries:
            environments += [*summary["earlier_environments"], {name: summary[name] for name in names}]
        changes = {
            "imp": cost,
            "seconds": sum(record["seconds"] for record in records),
            "earlier_environments": [one for one, after in pairwise(environments) if one != after],
        }
        self._folder.finish({**last, **numbers, **changes})


def level_nnz(density: float, weights: int, level: int, levels: int) -> int:
    """How many weights a level trains: weights * density^(level / levels), and at the last exactly K."""
    last = budget(density, weights)
    return last if level == levels else max(last, round(weights * float(density ** (level / levels))))


def _on_support(state: State, session: Session) -> State:
    """The state of the dense network as one of `session`, whose network has some of its weights."""
    supports = {id(m.values): m.support for m in session.model.modules() if isinstance(m, DpSLayer)}

    def taken(slot: Tensor, parameter: nn.Parameter) -> Tensor:
        support = supports.get(id(parameter)) if slot.dim() else None
        return slot if support is None else slot.reshape(-1)[support.to(slot.device)]

    slots = {
        index: {name: taken(slot, session.trainer.parameters[int(index)]) for name, slot in named.items()}
        for index, named in state["slots"].items()
    }
    return copy.deepcopy(
        {
            **state,
            "slots": slots,
            "model": dict(session.model.state_dict()),
            # The validation accuracy of the dense network says nothing of this one.
            "records": [{**record, "val_accuracy": None} for record in state["records"]],
            "best": None,
            "epoch": {**state["epoch"], "seconds": 0.0},
        }
    )
