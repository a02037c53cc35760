"""A warning for an optimizer that was made before its parameters were replaced: it would train nothing."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_STEPS = 100  # of all optimizers, after which nothing is looked at any more


class _Replaced(NamedTuple):
    """A parameter that no longer trains in its network.

    Attributes:
        parameter: itself, if it is still alive.
        version: of its gradient when it was replaced; None: it had none.
        call: what replaced it.
        new: ids of the parameters that train in its place.
    """

    parameter: weakref.ref[nn.Parameter]
    version: int | None
    call: str
    new: frozenset[int]


class _Watch:
    """The replaced parameters that are still alive, and a hook on every optimizer while there are some."""

    def __init__(self) -> None:
        self.replaced: dict[int, _Replaced] = {}
        self.seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.steps = 0
        self.handle: Any = None

    def add(self, replaced: dict[int, _Replaced]) -> None:
        self._forget_dead()
        self.replaced.update(replaced)
        self.seen.clear()
        self.steps = 0
        if self.replaced and self.handle is None:
            self.handle = register_optimizer_step_pre_hook(self._look)

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        """At an optimizer's first step: does it train what was replaced?"""
        if torch.compiler.is_compiling():
            return
        self.steps += 1
        found: list[_Replaced] = []
        if optimizer not in self.seen:
            self.seen.add(optimizer)
            self._forget_dead()
            held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
            found = [
                entry
                for key, entry in self.replaced.items()
                if key in held
                and entry.new.isdisjoint(held)
                and _version(held[key]) in (None, entry.version)  # else it is in use in another network
            ]
        if found or not self.replaced or self.steps >= _STEPS:
            self.replaced.clear()
            self.handle.remove()
            self.handle = None
        if found:
            kind, call = type(optimizer).__name__, found[0].call
            warnings.warn(
                f"{kind} holds {len(found)} parameters that {call} has replaced, and its steps do not "
                f"change what took their place: make the optimizer after {call}, as "
                f"{kind}(model.parameters()) of the model that {call} returns",
                stacklevel=3,
            )

    def _forget_dead(self) -> None:
        for key in [key for key, entry in self.replaced.items() if entry.parameter() is None]:
            del self.replaced[key]


_WATCH = _Watch()


def watch_optimizers(before: Iterable[nn.Parameter], model: nn.Module, call: str) -> None:
    """Warn once if an optimizer steps that holds parameters which no longer train in `model`.

    Only the first step of each optimizer is looked at, and nothing is where no replaced parameter is alive.

    Args:
        before: the parameters that trained before `call`.
        model: as `call` returns it.
        call: the function's name, for the message.
    """
    old, after = {id(p): p for p in before}, {id(p) for p in trained(model)}
    new = frozenset(after - old.keys())
    if gone := old.keys() - after:
        _WATCH.add({key: _Replaced(weakref.ref(old[key]), _version(old[key]), call, new) for key in gone})


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def _version(parameter: nn.Parameter) -> int | None:
    return None if parameter.grad is None else parameter.grad._version
