"""Further choices of a run's criterion and dynamics, each as `name=value`.

The options of a criterion or dynamics are the keyword-only arguments of its function or class, with their
defaults. torch is imported only where an option is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dctps.names import lookup

# Options that belong to the run, not to the criterion's function. The first two concern the data.
_OF_THE_RUN: dict[str, Any] = {"images_per_class": 10, "loss": "cross_entropy", "shuffle": False}
_WITHOUT_DATA = ("synflow", "magnitude")
# Arguments of a dynamics that other fields of the run decide.
_SET_BY_RUN = (
    "update_interval",
    "drop_fraction",
    "end",
    "seed",
    "block_bytes",
    "all_reduce",
    "in_data_parallel",
)

_COUNT: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda value: 0 < value < math.inf, "above 0")
_LOSSES = ("cross_entropy", "nll_on_logits")
# Checked before the data are read. Options that are not here are checked by what has them.
_RANGES = {
    "images_per_class": _COUNT,
    "loss": (lambda value: value in _LOSSES, " or ".join(_LOSSES)),
    "steps": _COUNT,
    "rounds": _COUNT,
    "temperature": _POSITIVE,
    "threshold": _POSITIVE,
}
# The order in which a run's name has them; others come last.
_ORDER = (
    *("images_per_class", "loss", "mode", "steps", "rounds", "temperature", "shuffle"),
    *("decay", "at_least_one", "regrow_dropped", "drop", "threshold"),
)


def options_of(owner: str) -> dict[str, Any]:
    """The options of a criterion or dynamics, each with its default; none for another name."""
    function = _function(owner)
    if function is None:
        return {}
    found: dict[str, Any] = {}
    if _is_criterion(owner):
        found = {"shuffle": False} if owner in _WITHOUT_DATA else dict(_OF_THE_RUN)
    for name, parameter in signature(function).parameters.items():
        is_plain = isinstance(parameter.default, bool | int | float | str)
        if parameter.kind is Parameter.KEYWORD_ONLY and is_plain and name not in _SET_BY_RUN:
            found[name] = parameter.default
    return found


def resolve_options(given: Iterable[str], owners: Iterable[str | None]) -> tuple[str, ...]:
    """Check options, put them in order, and leave out those that equal their default.

    Args:
        given: `name=value` each.
        owners: the criteria and dynamics of the run.

    Raises:
        ValueError: no such option, one that nothing in the run has, a value out of range, or one given twice.
    """
    given = tuple(given)
    if not given:
        return ()
    having = sorted({owner for owner in owners if owner is not None})
    known = {owner: options_of(owner) for owner in _owners()}
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"the option {text!r} sets nothing: write name=value, such as steps=100")
        lookup("option", {option: None for options in known.values() for option in options}, name)
        usual = {owner: known[owner][name] for owner in having if name in known.get(owner, {})}
        if not usual:
            raise ValueError(
                f"the option {name} belongs to {', '.join(o for o in known if name in known[o])}, and "
                f"the run has {', '.join(having) or 'none of them'}: leave it out"
            )
        if name in found:
            raise ValueError(f"the option {name} is given twice: leave one out")
        parsed = [_parse(name, value, owner, default) for owner, default in usual.items()]
        unusual = any(one != default for one, default in zip(parsed, usual.values(), strict=True))
        found[name] = f"{name}={_written(parsed[0])}" if unusual else ""
    order = [*_ORDER, *sorted(found.keys() - set(_ORDER))]
    return tuple(found[name] for name in order if found.get(name))


def arguments_of(options: Iterable[str], owner: str | None) -> dict[str, Any]:
    """The keyword arguments that a criterion or dynamics is called with.

    Args:
        options: resolved.
        owner: its name.
    """
    chosen = dict(text.split("=", 1) for text in options)
    if not chosen or owner is None:
        return {}
    return {
        name: _parse(name, chosen[name], owner, default)
        for name, default in options_of(owner).items()
        if name in chosen and name not in _OF_THE_RUN
    }


def option_of_run(options: Iterable[str], name: str) -> Any:
    """The value of `images_per_class`, `loss` or `shuffle`: as given, or its default."""
    chosen = dict(text.split("=", 1) for text in options)
    return _parse(name, chosen[name], None, _OF_THE_RUN[name]) if name in chosen else _OF_THE_RUN[name]


def _owners() -> list[str]:
    import dctps.dynamic  # noqa: PLC0415
    import dctps.selection  # noqa: PLC0415

    return [*dctps.selection.criteria.registry.CRITERIA, *dctps.dynamic.list_dynamics()]


def _is_criterion(owner: str) -> bool:
    from dctps.selection.criteria.registry import CRITERIA  # noqa: PLC0415

    return owner in CRITERIA


def _function(owner: str) -> Callable[..., Any] | None:
    """The function of a criterion, or the class of a dynamics."""
    from dctps.dynamic.base import DYNAMICS  # noqa: PLC0415
    from dctps.selection.criteria.registry import CRITERIA  # noqa: PLC0415

    _owners()  # imports those that come with the library
    return CRITERIA.get(owner) or DYNAMICS.get(owner)


def _parse(name: str, text: str, owner: str | None, default: Any) -> Any:
    """The value that `text` writes, of the type of the default."""
    holds, what = _RANGES.get(name, (lambda _: True, type(default).__name__))
    function = None if owner is None else _function(owner)
    choices = () if function is None else _choices(function, name)
    if choices:
        holds, what = (lambda value: value in choices), " or ".join(choices)
    read: Callable[[str], Any] = type(default)
    if isinstance(default, bool):
        what, read = "true or false", lambda word: {"true": True, "false": False}[word.lower()]
    elif isinstance(default, int | float) and name not in _RANGES:
        what = "a whole number" if isinstance(default, int) else "a number"
    try:
        value = read(text)
        if holds(value):
            return value
    except (KeyError, ValueError):
        pass
    raise ValueError(f"the option {name} must be {what}, got {text!r}")


def _choices(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """The texts that an argument may be, where its annotation lists them."""
    called: Any = function
    called = called.__init__ if isinstance(function, type) else called
    try:
        hint = get_type_hints(called).get(name)
    except NameError:  # an annotation that exists for type checkers alone
        return ()
    return get_args(hint) if get_origin(hint) is Literal else ()


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
