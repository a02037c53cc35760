"""Iterative magnitude pruning: train, prune, rewind, train again, until K weights are left.

Level 0 is the dense network. At the end of each level the smallest |weights| of the whole network go, and the
survivors are put back to what they were at the rewinding point of level 0, together with everything else that
training depends on: norms, optimizer slots, learning rate, loss scaler and the data's random stream. From
level 1 on the network is a sparse one, with the zero offset, that holds and trains the survivors alone.

Reference: Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; Frankle et al., "Linear Mode
Connectivity and the Lottery Ticket Hypothesis", ICML 2020 (rewinding).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

import dctps
from dctps.data import Dataset
from dctps.experiments.config import RunConfig
from dctps.experiments.network import build_network
from dctps.experiments.records import Record
from dctps.experiments.session import Session
from dctps.experiments.state import State, StateError
from dctps.nn import DpSLayer
from dctps.nn.surgery import named_modules
from dctps.selection.criteria.ranking import keep_largest
from dctps.sparse import budget
from dctps.training import Metrics, Processes

Supports = dict[str, Tensor]


class LevelSession:
    """The run of `--method imp` in memory: a `Session` for each level, one after the other.

    Args:
        config: resolved, with `levels` and `rewind_epoch`.
        dataset: as for `Session`.
        device: as for `Session`.
        processes: as for `Session`.

    Attributes:
        level: that is being trained, from 0, the dense one, to `config.levels`.
        records: of the epochs of all levels, each with its level and nnz, numbered through.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        assert config.levels is not None and config.rewind_epoch is not None, "resolve() fills them in"
        assert config.density is not None, "resolve() asks for it"
        self.config, self.levels, self.rewind_epoch = config, config.levels, config.rewind_epoch
        self._density = config.density
        self._dataset, self._device, self._processes = dataset, device, processes
        self.level = 0
        self._earlier: list[Record] = []
        self._supports: Supports = {}
        self._session = self._open(self._dense())
        self._rewound = copy.deepcopy(self._session.state()) if self.rewind_epoch == 0 else None

    @property
    def model(self) -> nn.Module:
        """The network of this level."""
        return self._session.model

    @property
    def records(self) -> list[Record]:
        """Of all levels."""
        skipped = self.rewind_epoch if self.level else 0
        ours = self._session.records[skipped:]
        return self._earlier + [self._numbered(r, len(self._earlier) + i) for i, r in enumerate(ours, 1)]

    @property
    def finished(self) -> bool:
        """Whether the last level is trained."""
        return self.level == self.levels and self._session.finished

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done of all levels, and steps done of the next."""
        return len(self.records), self._session.position[1]

    @property
    def where(self) -> str:
        """The position in words."""
        return f"in level {self.level} of {self.levels}, {self._session.where}"

    @property
    def best(self) -> Record | None:
        """As for `Session`, among the epochs of the last level."""
        best = self._session.best if self.level == self.levels else None
        if best is None:
            return None
        of_level = (record for record in self.records if record["level"] == self.level)
        return next(record for record in of_level if record["of_level"] == best["epoch"])

    def best_model(self) -> nn.Module | None:
        """As for `Session`."""
        return self._session.best_model() if self.level == self.levels else None

    def train_epoch(self, *, progress: bool, between: Callable[[], None]) -> Record:
        """As for `Session`, beginning the next level where this one is done."""
        if self._session.finished:
            self._next_level()
        self._session.train_epoch(progress=progress, between=between)
        if self.level == 0 and len(self._session.records) == self.rewind_epoch:
            self._rewound = copy.deepcopy(self._session.state())
        return self.records[-1]

    def test(self) -> Metrics:
        """As for `Session`."""
        return self._session.test()

    def cost(self) -> Record:
        """What all levels together took: epochs, optimizer steps, and each level's nnz and accuracy."""
        last = {record["level"]: record for record in self.records}
        shown = ("level", "nnz", "val_accuracy", "test_accuracy")
        return {
            "epochs_trained": len(self.records),
            "steps_trained": len(self.records) * self._session.steps_per_epoch,
            "levels": [{name: record[name] for name in shown} for record in last.values()],
        }

    def state(self) -> State:
        """As for `Session`; the dense network as it was at the rewinding point is a part of it."""
        return {
            "level": self.level,
            "earlier": self._earlier,
            "supports": self._supports,
            "rewound": self._rewound,
            "session": self._session.state(),
        }

    def load_state(self, state: State) -> None:
        """As for `Session`."""
        try:
            level, earlier = int(state["level"]), [dict(record) for record in state["earlier"]]
            if not 0 <= level <= self.levels or not bool(level) == bool(earlier) == bool(state["supports"]):
                raise ValueError(f"level {level} after {len(earlier)} epochs")
            self.level, self._earlier, self._supports = level, earlier, dict(state["supports"])
            self._rewound = state["rewound"]
            if level:
                self._session = self._open(self._sparse())
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise StateError(f"it does not fit this run ({type(error).__name__}: {reason[:200]})") from None
        self._session.load_state(state["session"])

    def _next_level(self) -> None:
        self._earlier = self.records
        self._supports = self._survivors(self.level + 1)
        self.level += 1
        self._session = self._open(self._sparse())
        assert self._rewound is not None, "the rewinding point is in level 0"
        self._session.load_state(_on_support(self._rewound, self._session))

    def _survivors(self, level: int) -> Supports:
        """The supports of a level, from the weights at the end of the one before; ties to the earlier."""
        model = self._session.model
        if level == 1:
            # All weights of the layers that can be converted: how many there are, and where.
            model = dctps.sparsify_(copy.deepcopy(model), 1.0, offset="zero", criterion="magnitude")
        layers = {name: module for name, module in named_modules(model) if isinstance(module, DpSLayer)}
        weights = sum(math.prod(layer.offset.shape) for layer in layers.values())
        count = level_nnz(self._density, weights, level, self.levels)
        kept = keep_largest({name: layer.values.detach().abs() for name, layer in layers.items()}, count)
        return {name: layers[name].support[which] for name, which in kept.items()}

    def _dense(self) -> nn.Module:
        return build_network(replace(self.config, density=None), self._dataset.description, self._device)

    def _sparse(self) -> nn.Module:
        """The network of the survivors, at the rewinding point."""
        assert self._rewound is not None, "the rewinding point is in level 0"
        model = self._dense()
        model.load_state_dict(self._rewound["model"])
        return dctps.sparsify_(
            model, offset="zero", criterion={n: s.to(self._device) for n, s in self._supports.items()},
            seed=self.config.seed,
        )  # fmt: skip

    def _open(self, model: nn.Module) -> Session:
        return Session(
            replace(self.config, dynamics=None), self._dataset, self._device, self._processes, model=model
        )

    def _numbered(self, record: Record, epoch: int) -> Record:
        layers = [m for m in self.model.modules() if isinstance(m, DpSLayer)]
        nnz = sum(layer.nnz for layer in layers) if layers else None
        return {**record, "epoch": epoch, "level": self.level, "of_level": record["epoch"], "nnz": nnz}


def level_nnz(density: float, weights: int, level: int, levels: int) -> int:
    """How many weights a level trains: weights * density^(level / levels), and at the last exactly K."""
    last = budget(density, weights)
    return last if level == levels else max(last, round(weights * float(density ** (level / levels))))


def _on_support(state: State, session: Session) -> State:
    """A state of the dense network, as that of a session whose network has some of its weights."""
    supports = {id(m.values): m.support for m in session.model.modules() if isinstance(m, DpSLayer)}

    def taken(slot: Tensor, parameter: nn.Parameter) -> Tensor:
        support = supports.get(id(parameter)) if slot.dim() else None
        return slot if support is None else slot.reshape(-1)[support.to(slot.device)]

    slots = {
        index: {name: taken(slot, session.parameters[int(index)]) for name, slot in named.items()}
        for index, named in state["slots"].items()
    }
    return copy.deepcopy(
        {
            **state,
            "slots": slots,
            "model": dict(session.model.state_dict()),
            # What the dense network was on the validation set says nothing of this one.
            "records": [{**record, "val_accuracy": None} for record in state["records"]],
            "best": None,
            "epoch": {**state["epoch"], "seconds": 0.0},
        }
    )
