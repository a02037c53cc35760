"""A warning for an optimizer that was made before its parameters were replaced: it would train nothing."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_Entry = tuple[Callable[[], Tensor | None], int | None, str]
_NONE: _Entry = (lambda: None, None, "")
_STEPS = 100  # of all optimizers, after which nothing is looked at any more


class _Watch:
    """The replaced parameters that are still alive, and a hook on every optimizer while there are some."""

    def __init__(self) -> None:
        # By id: the parameter, its gradient's version then (None: no gradient), and what replaced it.
        self.replaced: dict[int, _Entry] = {}
        self.seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.steps = 0
        self.handle: Any = None

    def add(self, parameters: Iterable[nn.Parameter], call: str) -> None:
        self.replaced = self._alive()
        self.replaced |= {id(p): (weakref.ref(p), _version(p), call) for p in parameters}
        self.seen.clear()
        self.steps = 0
        if self.replaced and self.handle is None:
            self.handle = register_optimizer_step_pre_hook(self._look)

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        """At an optimizer's first step: does it train what was replaced?"""
        if torch.compiler.is_compiling():
            return
        self.steps += 1
        calls: list[str] = []
        if optimizer not in self.seen:
            self.seen.add(optimizer)
            self.replaced = self._alive()
            for group in optimizer.param_groups:
                for p in group["params"]:
                    reference, version, call = self.replaced.get(id(p), _NONE)
                    held = reference()
                    # With a new gradient it is in use in another network.
                    if held is not None and held is p and _version(held) in (None, version):
                        calls.append(call)
        if calls or not self.replaced or self.steps >= _STEPS:
            self.replaced.clear()
            self.handle.remove()
            self.handle = None
        if calls:
            kind = type(optimizer).__name__
            warnings.warn(
                f"{kind} holds {len(calls)} parameters that {calls[0]} has replaced, and its steps do not "
                f"change what took their place: make the optimizer after {calls[0]}, as "
                f"{kind}(model.parameters()) of the model that {calls[0]} returns",
                stacklevel=3,
            )

    def _alive(self) -> dict[int, _Entry]:
        return {key: entry for key, entry in self.replaced.items() if entry[0]() is not None}


_WATCH = _Watch()


def watch_optimizers(before: Iterable[nn.Parameter], model: nn.Module, call: str) -> None:
    """Warn once if an optimizer steps that holds parameters which no longer train in `model`.

    Only the first step of each optimizer is looked at, and nothing is where no replaced parameter is alive.

    Args:
        before: the parameters that trained before `call`.
        model: as `call` returns it.
        call: the function's name, for the message.
    """
    after = {id(p) for p in model.parameters() if p.requires_grad}
    if gone := [p for p in before if id(p) not in after]:
        _WATCH.add(gone, call)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def _version(parameter: Tensor) -> int | None:
    return None if parameter.grad is None else parameter.grad._version
