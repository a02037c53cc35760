"""Further choices of a run's criterion and dynamics, each as `name=value`.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dctps.names import lookup

_ON_DATA = ("snip", "grasp", "force", "iter-snip", "offset-snip", "offset-gradient")
_SCORED = (*_ON_DATA, "synflow", "magnitude")
_MODES = dict.fromkeys(("snip", "grasp", "force", "iter-snip"), "train") | {"synflow": "eval"}


class Option(NamedTuple):
    """An option.

    Attributes:
        usual: its usual value in each criterion and dynamics that has it.
        holds: whether a value is in its range.
        what: the range in words.
    """

    usual: Mapping[str, Any]
    holds: Callable[[Any], bool]
    what: str


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, " or ".join(names)


_ANY_BOOL: tuple[Callable[[Any], bool], str] = (lambda _: True, "true or false")
_COUNT: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda value: 0 < value < math.inf, "above 0")

OPTIONS: dict[str, Option] = {
    "images_per_class": Option(dict.fromkeys(_ON_DATA, 10), *_COUNT),
    "loss": Option(dict.fromkeys(_ON_DATA, "cross_entropy"), *_one_of("cross_entropy", "nll_on_logits")),
    "mode": Option(_MODES, *_one_of("train", "eval")),
    "steps": Option({"force": 60, "iter-snip": 60}, *_COUNT),
    "rounds": Option({"synflow": 100}, *_COUNT),
    "temperature": Option({"grasp": 200.0}, *_POSITIVE),
    "shuffle": Option(dict.fromkeys(_SCORED, False), *_ANY_BOOL),
    "decay": Option({"rigl": "cosine", "set": "cosine"}, *_one_of("cosine", "constant")),
    "at_least_one": Option({"rigl": False, "set": False}, *_ANY_BOOL),
    "regrow_dropped": Option({"rigl": True}, *_ANY_BOOL),
    "drop": Option({"set": "magnitude"}, *_one_of("magnitude", "signed")),
    "threshold": Option({"dsr": 1e-3}, *_POSITIVE),
}
# Of the run, and not arguments of the criterion itself.
_OF_THE_RUN = ("images_per_class", "loss", "shuffle")


def resolve_options(given: Iterable[str], owners: Iterable[str | None]) -> tuple[str, ...]:
    """Options checked, in the order of `OPTIONS`, and without those that say what is so anyway.

    Args:
        given: `name=value` each.
        owners: the criteria and dynamics of the run.

    Raises:
        ValueError: no such option, one that nothing in the run has, a value out of range, or one given twice.
    """
    having = {owner for owner in owners if owner is not None}
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"the option {text!r} sets nothing: write name=value, such as steps=100")
        option = lookup("option", OPTIONS, name)
        usual = {owner: option.usual[owner] for owner in option.usual if owner in having}
        if not usual:
            raise ValueError(
                f"the option {name} belongs to {', '.join(option.usual)}, and the run has "
                f"{', '.join(sorted(having)) or 'none of them'}: leave it out"
            )
        if name in found:
            raise ValueError(f"the option {name} is given twice: leave one out")
        parsed = _parse(name, value)
        unusual = set(usual.values()) != {parsed}
        found[name] = f"{name}={_written(parsed)}" if unusual else ""
    return tuple(found[name] for name in OPTIONS if found.get(name))


def arguments_of(options: Iterable[str], owner: str | None) -> dict[str, Any]:
    """The keyword arguments that a criterion or dynamics is called with.

    Args:
        options: resolved.
        owner: its name.
    """
    chosen = dict(text.split("=", 1) for text in options)
    return {
        name: _parse(name, value)
        for name, value in chosen.items()
        if owner in OPTIONS[name].usual and name not in _OF_THE_RUN
    }


def option_of_run(options: Iterable[str], name: str) -> Any:
    """The value of `images_per_class`, `loss` or `shuffle`: as given, or the usual one."""
    chosen = dict(text.split("=", 1) for text in options)
    return _parse(name, chosen[name]) if name in chosen else next(iter(OPTIONS[name].usual.values()))


def _parse(name: str, text: str) -> Any:
    option = OPTIONS[name]
    kind = type(next(iter(option.usual.values())))
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        if option.holds(value):
            return value
    except (KeyError, ValueError):
        pass
    raise ValueError(f"the option {name} must be {option.what}, got {text!r}")


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
