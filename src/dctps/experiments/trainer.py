"""A network and what changes it: optimizer, schedule, precision, mixup and dynamics, with their state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dctps import training
from dctps.dynamic import take_sizes_
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.network import build_dynamics
from dctps.experiments.state import State
from dctps.networks import tune_
from dctps.networks.tuning import Measured
from dctps.training import GraphedPass, Metrics, Precision, Processes, Tally, graph

Batch = tuple[Tensor, Tensor]

# The configuration fixes everything else that a schedule has.
_SCHEDULE_STATE = ("last_epoch", "_step_count", "_last_lr")
_ADAM_SLOTS = {"step", "exp_avg", "exp_avg_sq"}
_SLOTS = {"sgd": {"momentum_buffer"}, "adam": _ADAM_SLOTS, "adamw": _ADAM_SLOTS}


class Trainer:
    """Trains a network on so many images, step by step.

    Attributes:
        steps: of an epoch.
        parameters: those that train, in the order of the optimizer's slots.
        dynamics: what changes the supports; None where they stay.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        model: nn.Module,
        images: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.config, self.model, self._processes = config, model, processes
        self.steps = math.ceil(images / config.batch_size)
        self._precision = Precision(config.amp, device.type)
        self._mixup = training.Mixup(config.mixup, config.seed) if config.mixup else None
        groups = training.parameter_groups(
            model, config.weight_decay, decay_alpha=config.decay_alpha, decay_norm_bias=config.decay_norm_bias
        )
        self.optimizer = training.build_optimizer(
            config.optimizer, groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        self.parameters: list[nn.Parameter] = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        steps = config.epochs * self.steps
        self._schedule = training.build_schedule(
            config.schedule, self.optimizer, total_steps=steps, milestones=config.milestones
        )
        self.dynamics = build_dynamics(config, model, self.optimizer, steps, processes)
        self._step: dict[str, Any] = {
            "precision": self._precision,
            "clip_norm": config.clip_norm,
            "dynamics": self.dynamics,
        }
        self._graph = self._graphed(device)

    def _graphed(self, device: torch.device) -> GraphedPass | None:
        """The pass as a CUDA graph, where it is asked for and nothing in it changes from step to step."""
        changing = self._mixup is not None or self._processes.count > 1 or self.config.amp == "fp16"
        if not graph.wanted() or device.type != "cuda" or changing or self.config.dynamics == "dsr":
            return None

        def once(images: Tensor, labels: Tensor) -> Tensor:
            return training.pass_once(
                self.model, images, labels, labels, 1.0, self._precision, self._processes
            )

        return GraphedPass(once, self.model, self.parameters)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train_epoch(self, batches: Iterable[Batch], epoch: int, tally: Tally) -> None:
        """Train on the rest of an epoch's batches, after those in `tally`."""
        training.train_epoch(
            self.model, batches, self.optimizer, self._schedule, epoch=epoch, mixup=self._mixup, tally=tally,
            processes=self._processes, graph=self._graph, **self._step,
        )  # fmt: skip
        self._processes.average_statistics_(self.model)

    def check_sums(self, tally: Tally, epoch: int) -> None:
        """Read the sums of an epoch so far; `NonFiniteLoss` is raised if a loss was not finite."""
        training.check_sums(tally, epoch, self.optimizer, self._precision)

    def take_step(self, loss: float, epoch: int, step: int) -> None:
        """Take a step of `train_epoch`, of that number, along the gradients that the parameters hold.

        If the mean `loss` is not finite, nothing changes and `NonFiniteLoss` is raised.
        """
        training.check_finite(loss, epoch, step, self.optimizer, self._precision)
        training.take_step(self.optimizer, self._schedule, **self._step)

    def evaluate(self, batches: Iterable[Batch]) -> Metrics:
        """Loss and accuracy on all of `batches`."""
        return training.evaluate(self.model, batches, precision=self._precision)

    def tune(self, images: Tensor) -> dict[str, Measured]:
        """Measure the layers' paths on the uint8 `images` of a step of one process, and fix the fastest."""
        batch = images[: math.ceil(self.config.batch_size / self._processes.count)]
        with self._precision.autocast():
            return tune_(self.model, batch.to(torch.float32, memory_format=torch.channels_last) / 255)

    def fill(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Load a network's state into `model`; under DSR its supports may have other sizes."""
        if self.config.dynamics == "dsr":
            take_sizes_(model, state)
        model.load_state_dict(state)

    def state(self) -> State:
        """All that the next steps depend on, except the batches."""
        optimizer, schedule = self.optimizer.state_dict(), self._schedule.state_dict()
        return {
            "model": dict(self.model.state_dict()),
            "slots": {str(index): slots for index, slots in optimizer["state"].items()},
            "rates": [group["lr"] for group in optimizer["param_groups"]],
            "schedule": {name: schedule[name] for name in _SCHEDULE_STATE},
            "scaler": self._precision.scaler.state_dict(),
            "dynamics": None if self.dynamics is None else self.dynamics.state_dict(),
        }

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken; raises ValueError, or what loading raises, where it does not fit."""
        self.fill(self.model, state["model"])
        saved, slots = self.optimizer.state_dict(), state["slots"]
        laid_out: dict[int, dict[str, Tensor]] = {}
        for index, named in slots.items():
            if named.keys() != _SLOTS[self.config.optimizer]:
                raise ValueError(f"the optimizer has {', '.join(named)} for parameter {index}")
            parameter = self.parameters[int(index)]
            for name, slot in named.items():
                if slot.shape != (() if name == "step" else parameter.shape):
                    raise ValueError(f"the optimizer's {name} of parameter {index} is {tuple(slot.shape)}")
            # A fused optimizer pairs numbers by their place in memory, and a file's are in another order.
            laid_out[int(index)] = {
                name: slot if name == "step" else torch.empty_like(parameter, dtype=slot.dtype).copy_(slot)
                for name, slot in named.items()
            }
        for group, rate in zip(saved["param_groups"], state["rates"], strict=True):
            group["lr"] = float(rate)
        self.optimizer.load_state_dict(saved | {"state": laid_out})
        self._schedule.load_state_dict({name: state["schedule"][name] for name in _SCHEDULE_STATE})
        self._precision.scaler.load_state_dict(state["scaler"])
        if self.dynamics is not None:
            self.dynamics.load_state_dict(state["dynamics"])
