"""All that a run holds in memory: the network on its way, the data, the stream of batches, metrics so far."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dctps.data import Dataset, ImageTensors
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.network import build_network
from dctps.experiments.parts import Parts, Stream, scoring_batches, split
from dctps.experiments.records import Record
from dctps.experiments.state import State, StateError
from dctps.experiments.trainer import Trainer
from dctps.networks.tuning import Measured
from dctps.training import Metrics, Processes, Tally


@dataclass
class _Epoch:
    """The epoch that is going on: the rate at its first step, the time so far, the sums of its steps."""

    lr: float
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)


class Session:
    """A run in memory: what it was, what it is, and how it goes on.

    `state` and `load_state` are the one place that knows what a run's future depends on. Whatever is added
    to a run and changes while it trains belongs there.

    The network is the one that `config` describes, with `supports` that a criterion has already chosen, or
    `model`, on `device`. `processes` share the batches (None: this one alone). `parts` of the data set may
    have been made already. `records` are of the epochs that are done, as in metrics.jsonl.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        dataset: Dataset,
        device: torch.device,
        processes: Processes | None = None,
        *,
        model: nn.Module | None = None,
        supports: Mapping[str, Tensor] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.parts = split(config, dataset, device) if parts is None else parts
        self._stream = Stream(config, dataset)
        self._clock: Callable[[], float] = time.perf_counter
        images = self.parts.train
        scoring = scoring_batches(config, images, dataset)
        self.model = model or build_network(
            config, dataset.description, device, batches=scoring, supports=supports
        )
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trainer = Trainer(config, self.model, len(images), device, processes or Processes())
        self.records: list[Record] = []
        self._best: dict[str, Any] | None = None
        self._begin_epoch()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.records) >= self.config.epochs

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and steps done of the next."""
        return len(self.records), self._epoch.tally.steps

    @property
    def where(self) -> str:
        """The position in words: `"after epoch 3 of 20"`, `"in epoch 4 of 20, after step 120 of 450"`."""
        (epochs, steps), total = self.position, self.config.epochs
        if steps:
            return f"in epoch {epochs + 1} of {total}, after step {steps} of {self.trainer.steps}"
        return f"after epoch {epochs} of {total}" if epochs else "before the first step"

    @property
    def best(self) -> Record | None:
        """The record with the best validation accuracy (ties: the earlier); None without a validation set."""
        judged = [record for record in self.records if record["val_accuracy"] is not None]
        return max(judged, key=lambda record: float(record["val_accuracy"]), default=None)

    def best_model(self) -> nn.Module | None:
        """A copy of the network as it was after the epoch of `best`."""
        if self._best is None:
            return None
        model = copy.deepcopy(self.model)
        self.trainer.fill(model, self._best)
        return model

    def train_epoch(self, *, progress: bool, between: Callable[[], None]) -> Record:
        """Train to the end of the epoch, evaluate, and return its record for metrics.jsonl.

        `between` is called before each batch, of evaluation too; `state()` is then whole, and an exception
        ends the epoch there. `progress` shows a bar where standard error is a terminal.
        """
        self._resumed_at = self._clock()
        number, epoch = len(self.records) + 1, self._epoch
        # disable=None is tqdm's way to say: off where standard error is no terminal.
        bar = tqdm(
            self.training_batches(between), desc=f"epoch {number}/{self.config.epochs}", unit="step",
            total=self.trainer.steps, initial=epoch.tally.steps, leave=False,
            disable=None if progress else True,
        )  # fmt: skip
        self.trainer.train_epoch(bar, number, epoch.tally)
        held_out = self.parts.validation
        validation = self._evaluate(held_out, between) if len(held_out) else None
        return self.close_epoch(validation, self._evaluate(self.parts.test, between))

    def close_epoch(self, validation: Metrics | None, test: Metrics) -> Record:
        """End the epoch, after its last step, and return its record for metrics.jsonl."""
        train = self._epoch.tally.metrics()
        record = {
            "epoch": len(self.records) + 1,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": validation and validation.loss,
            "val_accuracy": validation and validation.accuracy,
            "test_accuracy": test.accuracy,
            "lr": self._epoch.lr,
            "seconds": self._seconds(),
        }
        self.records.append(record)
        if self.best is record:
            self._best = {
                name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                for name, value in self.model.state_dict().items()
            }
        self._begin_epoch()
        return record

    def share(self, leader: Session, clock: Callable[[], float]) -> None:
        """Let the caller train this run on the batches of `leader`, by `take_step` and `close_epoch`.

        The leader is at the same position and has the same batches; `clock` gives this run's share of time.
        """
        self._stream, self._clock = leader._stream, clock
        self._resumed_at = clock()

    def take_step(self, loss: float, correct: int, images: int) -> None:
        """Take one step of `train_epoch` along the gradients that the parameters hold.

        `loss` is the sum over the `images` of the batch, of which `correct` are classified correctly. If it
        is not finite, nothing changes and `NonFiniteLoss` is raised.
        """
        tally = self._epoch.tally
        self.trainer.take_step(loss / images, len(self.records) + 1, tally.steps + 1)
        tally.add(loss, correct, images)

    def training_batches(self, between: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the epoch's batches; `between` as for `train_epoch`."""
        done = self._epoch.tally.steps
        return self._stream.training(self.parts.train, self.config.batch_size, between, done)

    def evaluation_batches(
        self, data: ImageTensors, between: Callable[[], None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All of `data`, one of `parts`, as they are."""
        return self._stream.evaluation(data, between)

    def tune(self) -> dict[str, Measured]:
        """Measure the paths of the layers on a batch as in training, and fix each at its fastest."""
        return self.trainer.tune(self.parts.train.images)

    def test(self) -> Metrics:
        """Evaluate on the test images."""
        return self._evaluate(self.parts.test, lambda: None)

    def state(self) -> State:
        """All that the rest of the run depends on, and the metrics so far, for `write_state`.

        In the middle of an epoch too: its order and augmentations are drawn again from `generator`, which is
        the stream at the epoch's start, and the first `tally["steps"]` batches are passed over.

        Raises:
            NonFiniteLoss: a loss of the epoch was not finite; on a GPU nobody has looked at the last ones.
        """
        self.trainer.check_sums(self._epoch.tally, len(self.records) + 1)
        state = {
            "records": self.records,
            "best": self._best,
            "epoch": asdict(self._epoch) | {"seconds": self._seconds()},
            **self.trainer.state(),
            "generator": self._epoch_generator,
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken, of a session with the same configuration and data.

        Raises:
            StateError: it does not fit. The session is then of no more use.
        """
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise StateError(f"it does not fit this run ({type(error).__name__}: {reason[:200]})") from None

    def _load(self, state: State) -> None:
        records = [dict(record) for record in state["records"]]
        numbers = [record["epoch"] for record in records]
        for record in records:
            for name in ("val_accuracy", "test_accuracy", "seconds"):
                float(record[name] or 0)
        lr, seconds, tally = (state["epoch"][name] for name in ("lr", "seconds", "tally"))
        sums = Tally(int(tally["steps"]), float(tally["loss"]), int(tally["correct"]), int(tally["images"]))
        epoch = _Epoch(float(lr), float(seconds), sums)
        steps, most = sums.steps, self.trainer.steps
        if numbers != list(range(1, len(numbers) + 1)) or not 0 <= steps <= most:
            raise ValueError(f"epochs {numbers}, step {steps} of {most}")
        if len(numbers) > self.config.epochs - (steps > 0):
            raise ValueError(f"{len(numbers)} of {self.config.epochs} epochs, step {steps}")

        self.trainer.load_state(state)
        self._stream.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.records, self._best = records, state["best"]
        if (self.best is None) != (self._best is None):
            raise ValueError("the best network is missing, or there is one too many")
        self.best_model()
        self._epoch, self._epoch_generator = epoch, state["generator"]
        self._resumed_at = self._clock()

    def _begin_epoch(self) -> None:
        self._epoch = _Epoch(lr=self.trainer.lr)
        self._epoch_generator = self._stream.generator.get_state()
        self._resumed_at = self._clock()

    def _seconds(self) -> float:
        """How long the epoch has taken so far, in this process and in those before."""
        return self._epoch.seconds + self._clock() - self._resumed_at

    def _evaluate(self, data: ImageTensors, between: Callable[[], None]) -> Metrics:
        return self.trainer.evaluate(self.evaluation_batches(data, between))
