"""Which layers of a network get an adapter, by PEFT's words, and which modules are trained beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dctps.networks.surgery import named_modules
from dctps.networks.survey import Expanded, survey
from dctps.nn import DpSMultiheadAttention
from dctps.nn.adapter import Adapters, adapters_of, can_adapt
from dctps.nn.versions import Versions, own_tensors

Patterns = str | Collection[str] | None


@dataclass(frozen=True)
class Targets:
    """What a call of `adapt_` is about, as the user named it.

    A text is a regular expression that matches the whole qualified name; a list holds names or their ends
    after a dot, as in PEFT.

    Attributes:
        target: layers to adapt; None: all that can be.
        exclude: modules to leave as they are, with all that is in them.
        save: modules to train as a whole, with all that is in them.
    """

    target: Patterns
    exclude: Patterns
    save: Collection[str]

    def __post_init__(self) -> None:
        if isinstance(self.save, str):
            raise ValueError(f"modules_to_save must be a list of names, got the text {self.save!r}")

    def expand(self, model: nn.Module) -> Expanded:
        """The network with the attention that is adapted written in linear layers."""

        def wanted(module: nn.Module, name: str) -> bool:
            parts = [name, *(f"{name}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj"))]
            return type(module) is nn.MultiheadAttention and any(map(self._takes, parts))

        return Expanded(model, wanted)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers to adapt, by qualified name.

        Raises:
            ValueError: a named layer that cannot be, a name that is nowhere, or no layer at all.
        """
        names = [name for name, _ in named_own(model)]
        for patterns, what in ((self.target, "target_modules"), (self.exclude, "exclude_modules")):
            _refuse_unknown(what, patterns, names)
        reasons = {found.name: found.reason for found in survey(model)}
        found: dict[str, nn.Module] = {}
        attention = ""  # the name of the attention that we are in, where it is taken as a whole
        for name, module in named_own(model):
            inside = bool(attention) and name.startswith(f"{attention}.")
            if not inside:
                attention = ""
            if not self._takes(name) and not (inside and not self._leaves(name)):
                continue
            if isinstance(module, DpSMultiheadAttention):
                attention = name if self.target is not None else ""
                continue
            if not name and can_adapt(module):
                raise ValueError("the model is a single layer: put it into nn.Sequential, then adapt that")
            known = reasons.get(name)
            if can_adapt(module) and (adapters_of(module) is not None or known == ""):
                found[name] = module
            elif self.target is not None:
                why = known or "only nn.Linear, nn.Conv1d, nn.Conv2d, attention and transformers' Conv1D can"
                raise ValueError(
                    f"target_modules names {name!r} ({type(module).__name__}), which cannot be adapted: {why}"
                )
        if not found:
            raise ValueError(
                f"{type(model).__name__} has no layer to adapt: target_modules={self.target!r} and "
                f"exclude_modules={self.exclude!r} leave none"
            )
        return found

    def saved(self, model: nn.Module) -> dict[str, tuple[nn.Module, list[str], bool]]:
        """The modules whose tensors are an adapter's own: the module, which tensors, whether they train.

        Those that are named, and norms with running statistics, which change while the network trains. A
        shared tensor is listed once.

        Raises:
            ValueError: a name that is nowhere.
        """
        own = dict(named_own(model))
        _refuse_unknown("modules_to_save", self.save, list(own))
        seen: set[int] = set()
        found = {}
        for name, module in own.items():
            trains = self._is_saved(name)
            counts = isinstance(module, _NormBase) and module.running_mean is not None
            tensors = own_tensors(module)
            keys = [key for key, tensor in tensors.items() if id(tensor) not in seen]
            seen.update(map(id, tensors.values()))
            if keys and (trains or counts):
                found[name] = (module, keys, trains)
        return found

    def _takes(self, name: str) -> bool:
        return (self.target is None or matches(name, self.target)) and not self._leaves(name)

    def _leaves(self, name: str) -> bool:
        return (self.exclude is not None and _is_in(name, self.exclude)) or self._is_saved(name)

    def _is_saved(self, name: str) -> bool:
        return _is_in(name, self.save)


def matches(name: str, patterns: str | Collection[str]) -> bool:
    """Whether a qualified name is meant: the whole of it by a text, its end after a dot by a list."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _is_in(name: str, patterns: str | Collection[str]) -> bool:
    """Whether a module is one that is meant, or inside of one."""
    parts = name.split(".")
    return any(matches(".".join(parts[: i + 1]), patterns) for i in range(len(parts)))


def named_own(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules`, without the adapters and what is in them."""
    hidden: set[nn.Module] = set()
    for name, module in named_modules(model):
        if isinstance(module, Adapters | Versions):
            hidden.update(module.modules())
        if module not in hidden:
            yield name, module


def adapted(model: nn.Module) -> dict[str, tuple[nn.Module, Adapters]]:
    """The layers that have adapters, by qualified name."""
    return {
        name: (module, adapters)
        for name, module in named_own(model)
        if (adapters := adapters_of(module)) is not None
    }


def own_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters of the network itself, those of its adapters left out."""
    return [p for _, module in named_own(model) for p in module._parameters.values() if p is not None]


def _refuse_unknown(what: str, patterns: Patterns, names: list[str]) -> None:
    if patterns is None:
        return
    try:
        wrong = [
            pattern
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
            if not any(matches(name, pattern if isinstance(patterns, str) else [pattern]) for name in names)
        ]
    except re.error as error:
        raise ValueError(f"{what}={patterns!r} is no regular expression: {error}") from None
    if wrong:
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names if name))
        raise ValueError(
            f"{what}: {wrong[0]!r} is no module of the network. Modules end in {', '.join(ends[:12])}"
            f"{', ...' if len(ends) > 12 else ''}"
        )
