"""What all methods share that change the supports while a network trains: when, of which layers, how much."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps.arguments import flag, real, whole
from dctps.names import Registry
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer

Decay = Literal["cosine", "constant"]
DynamicsT = TypeVar("DynamicsT", bound="type[Dynamics]")


class Dynamics(ABC):
    """Changes supports after every `update_interval`-th step of an optimizer, until step `end`.

    Args:
        model: with DpS layers; a layer with frozen values, or all or none of whose weights train, stays as
            it is.
        optimizer: of all their values; also as accelerate, transformers or Lightning wrap it.
        update_interval: steps between two changes (Delta T).
        end: the step from which on the supports stay.

    Attributes:
        steps: of the optimizer so far.

    Raises:
        ValueError: no layer to change, an optimizer that does not train them, or a bad number.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, update_interval: int, end: float) -> None:
        self.update_interval = whole("update_interval", update_interval, least=1)
        self.end, self.steps = real("end", end, finite=False), 0
        if not self.end >= 0:
            raise ValueError(f"end must be a number of steps, got {end}")
        self.optimizer = optimizer = inner_optimizer(optimizer)
        self.layers = _changeable(model)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self.layers.items():
            if id(layer.values) not in trained:
                raise ValueError(
                    f"the optimizer does not train the values of layer {name!r}: make it after sparsify_, "
                    f"of model.parameters()"
                )
        self._stepped = False
        self._handle = optimizer.register_step_post_hook(self._note_step)

    def step(self) -> bool:
        """Call after each `optimizer.step()` (or `scaler.step(optimizer)`), before or after the schedule's.

        A step that a `GradScaler` left out, because gradients overflowed, counts for nothing here.

        Returns:
            whether the supports were due to change.
        """
        if not self._stepped:
            self._skipped()
            return False
        self._stepped = False
        due = self._is_due(self.steps + 1)
        if due:
            self._change()
        self.steps += 1
        self._prepare()
        return due

    @property
    def due(self) -> bool:
        """Whether the supports change after the optimizer's next step."""
        return self._is_due(self.steps + 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: all that the rest depends on, except network and optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a ValueError where it is no such state."""
        self.steps, self._stepped = whole("steps of a dynamics' state", state["steps"], least=0), False
        self._prepare()

    def close(self) -> None:
        """Take every hook away; `step` then does nothing."""
        self._handle.remove()
        self._stepped = False

    @abstractmethod
    def _change(self) -> None:
        """Change the supports after step `steps` + 1."""

    def _prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Get ready for the step that comes next."""

    def _skipped(self) -> None:  # noqa: B027
        """The optimizer did not step."""

    def _set_share(self, drop_fraction: float, decay: Decay, at_least_one: bool) -> None:
        """Move int(f n) of the n weights of a layer at a time, or one where that is 0 and `at_least_one`.

        At step t, f = drop_fraction / 2 * (1 + cos(pi t / end)); without a decay, f = drop_fraction.

        Reference: Evci et al., "Rigging the Lottery", ICML 2020, section 3.
        """
        if decay not in ("cosine", "constant"):
            raise ValueError(f"decay must be 'cosine' or 'constant', got {decay!r}")
        self.drop_fraction, self.decay = check_fraction(drop_fraction), decay
        self.at_least_one = flag("at_least_one", at_least_one)
        largest = max(layer.nnz for layer in self.layers.values())
        if self.drop_fraction > 0 and self._count(largest) == 0:
            raise ValueError(
                f"no weight would ever move: {self.drop_fraction:g} of the {largest} weights of the largest "
                f"layer is less than one. Pass at_least_one=True (--options at_least_one=true), or a larger "
                f"drop_fraction or density"
            )

    def _count(self, weights: int) -> int:
        """How many of so many weights move at step `steps` + 1."""
        fraction = self.drop_fraction
        if self.decay == "cosine":
            fraction = fraction / 2 * (1 + math.cos(math.pi * (self.steps + 1) / self.end))
        return max(int(fraction * weights), int(self.at_least_one and weights > 0))

    def _is_due(self, step: int) -> bool:
        return step % self.update_interval == 0 and step < self.end

    def _note_step(self, optimizer: Optimizer, *_: object) -> None:
        # A GradScaler always calls a fused optimizer, and sets this where it is to do nothing.
        overflow = getattr(optimizer, "found_inf", None)
        self._stepped = overflow is None or not bool(overflow)


DYNAMICS: Registry[type[Dynamics]] = Registry("dynamics")


def register_dynamics(name: str) -> Callable[[DynamicsT], DynamicsT]:
    """Class decorator that gives a subclass of `Dynamics` its name; a ValueError where another has it."""
    return DYNAMICS.register(name)


def find_dynamics(name: str) -> type[Dynamics]:
    """The class called `name`; the ValueError where there is none gives the nearest."""
    return DYNAMICS.find(name)


def list_dynamics() -> list[str]:
    """All registered names."""
    return list(DYNAMICS)


def inner_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer that accelerate, transformers or Lightning has wrapped: the one whose `step` has hooks.

    A wrapper has the state of the optimizer within as its own. One that keeps a state beside it, such as a
    lookahead, is an optimizer by itself.
    """
    wrapped = optimizer
    while (
        isinstance(inner := getattr(wrapped, "optimizer", None), Optimizer) and inner.state is wrapped.state
    ):
        wrapped = inner
    if not isinstance(wrapped, Optimizer) or not hasattr(wrapped, "_optimizer_step_post_hooks"):
        raise ValueError(
            f"a dynamics follows the steps of a torch.optim.Optimizer, and {type(optimizer).__name__} is "
            f"none: pass the one that it wraps"
        )
    return wrapped


def check_fraction(fraction: float) -> float:
    """The share of the weights that moves, as a `float`; a ValueError where it is none."""
    fraction = real("drop_fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"drop_fraction must be in (0, 1], got {fraction}: 0.3 moves three of ten weights at first"
        )
    return fraction


def default_reduce() -> Callable[[Tensor], object] | None:
    """A sum over the processes of torch.distributed's default group, where there are several."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.all_reduce if several else None


def _changeable(model: nn.Module) -> dict[str, DpSLayer]:
    layers = {
        name: module
        for name, module in named_modules(model)
        if isinstance(module, DpSLayer) and module.values.requires_grad
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no DpS layer whose values train: call sparsify_ first, with a "
            f"density above 0"
        )
    for name, layer in layers.items():
        if hasattr(layer.values, "full_tensor"):
            raise ValueError(
                f"the values of layer {name!r} are sharded over processes, where a support cannot change: "
                f"use DistributedDataParallel, there is little to shard"
            )
    return layers
