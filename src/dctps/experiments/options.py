"""What a run's criterion and dynamics let one choose: the numbers with fields of their own, and the options.

An option is written `name=value`. The options of a criterion or dynamics are the keyword-only arguments of
its function or class, with their defaults. torch is imported only where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dctps.experiments.fields import WORDS, read_word
from dctps.names import lookup

_MOVING: dict[str, float | None] = {"update_interval": 100, "drop_fraction": 0.3, "dynamics_end": 0.75}
# The fields of each dynamics, with their defaults. The levels of imp follow from the density.
DYNAMICS: dict[str, dict[str, float | None]] = {
    "rigl": _MOVING,
    "set": _MOVING,
    "dsr": _MOVING | {"drop_fraction": 0.1},
    "imp": {"levels": None, "rewind_epoch": 0},
}
# Arguments of a dynamics that are no options: fields of the run decide them, or the run itself does.
_SET_BY_RUN = {*_MOVING, "end", "seed", "block_bytes", "all_reduce", "in_data_parallel"}
# Options that belong to the run, not to the criterion's function. The first two concern the data.
_OF_THE_RUN: dict[str, Any] = {"images_per_class": 10, "loss": "cross_entropy", "shuffle": False}
_WITHOUT_DATA = ("synflow", "magnitude")

_Range = tuple[Callable[[Any], bool], str]
_COUNT: _Range = (lambda value: value >= 1, "at least 1")
_POSITIVE: _Range = (lambda value: 0 < value < math.inf, "above 0")
_LOSSES = ("cross_entropy", "nll_on_logits")
# Checked before the data are read. The criterion or dynamics checks its other options itself.
_RANGES = {
    **dict.fromkeys(("images_per_class", "steps", "rounds"), _COUNT),
    **dict.fromkeys(("temperature", "threshold"), _POSITIVE),
    "loss": (lambda value: value in _LOSSES, " or ".join(_LOSSES)),
}
# The order of the options in a run's name; others come last.
_ORDER = (
    *("images_per_class", "loss", "mode", "steps", "rounds", "temperature", "shuffle"),
    *("decay", "at_least_one", "regrow_dropped", "drop", "threshold"),
)


def numbers_of(dynamics: str) -> dict[str, float | None]:
    """The fields that a dynamics has, with their defaults; those of a registered one from its signature."""
    if dynamics in DYNAMICS:
        return DYNAMICS[dynamics]
    from dctps.dynamic import find_dynamics, list_dynamics  # noqa: PLC0415

    lookup("dynamics", dict.fromkeys([*DYNAMICS, *list_dynamics()]), dynamics)
    arguments = signature(find_dynamics(dynamics)).parameters
    numbers = {name: value for name, value in _MOVING.items() if name in arguments or name == "dynamics_end"}
    for name in numbers.keys() & arguments.keys():
        if isinstance(default := arguments[name].default, int | float):
            numbers[name] = default
    return numbers


def options_of(owner: str) -> dict[str, Any]:
    """The options of a criterion or dynamics, each with its default; none for another name."""
    function = _owners().get(owner)
    if function is None:
        return {}
    options: dict[str, Any] = {}
    if not isinstance(function, type):  # a criterion
        options = {"shuffle": False} if owner in _WITHOUT_DATA else dict(_OF_THE_RUN)
    for name, parameter in signature(function).parameters.items():
        is_plain = isinstance(parameter.default, bool | int | float | str)
        if parameter.kind is Parameter.KEYWORD_ONLY and is_plain and name not in _SET_BY_RUN:
            options[name] = parameter.default
    return options


def resolve_options(given: Iterable[str], owners: Iterable[str | None]) -> tuple[str, ...]:
    """Check the options of a run with these criteria and dynamics, put them in order, drop the usual ones.

    Raises:
        ValueError: no such option, one that nothing in the run has, a value out of range, or one given twice.
    """
    given = tuple(given)
    if not given:
        return ()
    having = sorted({owner for owner in owners if owner is not None})
    known = {owner: options_of(owner) for owner in _owners()}
    resolved: dict[str, str] = {}
    for text in given:
        name, equals, word = text.partition("=")
        if not equals:
            raise ValueError(f"the option {text!r} sets nothing: write name=value, such as steps=100")
        lookup("option", {option: None for options in known.values() for option in options}, name)
        defaults = {owner: known[owner][name] for owner in having if name in known.get(owner, {})}
        if not defaults:
            raise ValueError(
                f"the option {name} belongs to {', '.join(o for o in known if name in known[o])}, and "
                f"the run has {', '.join(having) or 'none of them'}: leave it out"
            )
        if name in resolved:
            raise ValueError(f"the option {name} is given twice: leave one out")
        values = {owner: _parse(name, word, owner, default) for owner, default in defaults.items()}
        value = next(iter(values.values()))
        written = str(value).lower() if isinstance(value, bool) else str(value)
        resolved[name] = f"{name}={written}" if values != defaults else ""
    order = [*_ORDER, *sorted(resolved.keys() - set(_ORDER))]
    return tuple(resolved[name] for name in order if resolved.get(name))


def arguments_of(options: Iterable[str], owner: str | None) -> dict[str, Any]:
    """The keyword arguments that the resolved options give the criterion or dynamics called `owner`."""
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
    chosen, default = dict(text.split("=", 1) for text in options), _OF_THE_RUN[name]
    return _parse(name, chosen[name], None, default) if name in chosen else default


def _owners() -> dict[str, Callable[..., Any]]:
    """The functions of all criteria, then the classes of all dynamics, by name."""
    from dctps.dynamic.base import DYNAMICS  # noqa: PLC0415
    from dctps.selection.criteria.registry import CRITERIA  # noqa: PLC0415

    return {**CRITERIA, **DYNAMICS}


def _parse(name: str, word: str, owner: str | None, default: Any) -> Any:
    """The value that `word` writes, of the type of the default."""
    holds, wanted = _RANGES.get(name, (lambda _: True, WORDS[type(default)]))
    if owner is not None and (choices := _choices(_owners()[owner], name)):
        holds, wanted = (lambda value: value in choices), " or ".join(choices)
    value = word if isinstance(default, str) else read_word(type(default), word)
    if isinstance(default, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(default) or not holds(value):
        raise ValueError(f"the option {name} must be {wanted}, got {word!r}")
    return value


def _choices(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """The texts that an argument may be, where its annotation lists them."""
    called: Any = function
    try:
        hint = get_type_hints(called.__init__ if isinstance(function, type) else called).get(name)
    except NameError:  # an annotation that exists for type checkers alone
        return ()
    return get_args(hint) if get_origin(hint) is Literal else ()
