"""The types and ranges of a run's fields: which values fit, and how a word is read.

This module does not import torch; numbers of numpy and torch are known by what they can do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dctps.arguments import NO_WEIGHTS
from dctps.names import lookup

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def of_type(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field `name` with the annotation `kind` has it: a bool, int, float, str, tuple or None.

    Numbers of numpy and torch become Python's, lists become tuples, and a single value in the place of a list
    is a list of one. A text is no number: words are read by `read_word` first. A value that does not fit is a
    ValueError, with the nearest choice where there are only choices.
    """
    kinds = _kinds(kind)
    for one in kinds:
        try:
            return _fit(name, one, value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch refuses by RuntimeError
            continue
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    if isinstance(value, str) and choices and len(kinds) == 1:
        lookup(name, dict.fromkeys(choices), value)
    wanted = " or ".join([*choices, *filter(None, map(_described, kinds))])
    raise ValueError(f"{name} has the wrong type: {wanted} is wanted, got {value!r}")


def read_word(kind: Any, word: str) -> Any:
    """The value that `word` writes for a field of this annotation; the word itself where it writes none.

    `true` and `false` in any case are truth values, `none` is None where the field may be None, and numbers
    are written as Python takes them: `.05`, `5e-2`, `01`.
    """
    kinds = _kinds(kind)
    if word.lower() == "none" and NoneType in kinds:
        return None
    for one in kinds:
        if get_origin(one) is tuple:
            return read_word(get_args(one)[0], word)
        if one is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        for number in (int, float) if one is float else (int,) if one is int else ():
            try:
                return number(word)
            except ValueError:
                continue
    return word


@cache
def plain_types(kind: Any) -> frozenset[type]:
    """The types of values that fit without another look."""
    plain = {one for one in _kinds(kind) if one in (NoneType, *WORDS)}
    return frozenset(plain | {int} if float in plain else plain)


def check_range(name: str, value: Any) -> None:
    """Make sure that `value`, of the right type, is one that the field `name` may have."""
    if name in _RANGES and value is not None:
        holds, wanted, example = _RANGES[name]
        if not holds(value):
            raise ValueError(f"{name} must be {wanted}, got {value}; for instance {example}")


def refuse_density_0(offset: str | None, dynamics: str | None) -> None:
    """Raise a ValueError where the density 0 leaves nothing: without an offset, or for what moves weights."""
    if offset is None:
        raise ValueError("a hyperplane of density 0 has no dimension: choose a density above 0")
    if offset == "zero":
        raise ValueError(NO_WEIGHTS)
    if dynamics is not None:
        raise ValueError(
            f"{dynamics} moves weights, and at density 0 there are none: choose a method without dynamics, "
            f"such as dctps, or a density above 0"
        )


def _kinds(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _fit(name: str, kind: Any, value: Any) -> Any:
    """`value` as one of the kinds of a field; whatever this raises says that it does not fit."""
    is_truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    match get_origin(kind) or kind:
        case origin if origin is tuple:
            several = value if isinstance(value, list | tuple) else [value]
            return tuple(of_type(name, get_args(kind)[0], one) for one in several)
        case one if one is Literal:
            return get_args(kind)[get_args(kind).index(value)]
        case one if one is int and not is_truth:
            return operator.index(value)
        case one if one is float and not is_truth and not isinstance(value, str | bytes):
            return value if type(value) is int else float(value)
        case one if (one is bool and is_truth) or (one is str and isinstance(value, str)):
            return one(value)
        case one if one is NoneType and value is None:
            return None
    raise TypeError


def _described(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {WORDS[get_args(kind)[0]].split()[-1]}s"
    return WORDS.get(kind, "")


def _rising_shares(shares: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise([0.0, *shares, 1.0]))


# Of each field: what must hold of a value that is not None, in words, and an example.
_RANGES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    **dict.fromkeys(
        ("seed", "batch_seed", "data_seed"), (lambda x: 0 <= x < 2**63, "from 0 to 2^63 - 1", "0")
    ),
    "density": (lambda x: 0 <= x <= 1, "in [0, 1]", "0.01 trains one weight in a hundred"),
    "epochs": (lambda x: x >= 1, "at least 1", "20"),
    "alpha": (lambda x: isinstance(x, str) or math.isfinite(x), "one, match or a finite number", "one"),
    "lr": (lambda x: 0 < x < math.inf, "above 0", "0.006 with adam"),
    "momentum": (lambda x: 0 <= x < 1, "in [0, 1)", "0.9"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more", "0.0005"),
    "milestones": (_rising_shares, "rising shares of the run in (0, 1)", "0.6 0.8"),
    "batch_size": (lambda x: x >= 1, "at least 1", "128"),
    "train_images": (lambda x: x >= 1, "at least 1", "5000"),
    "eval_images": (lambda x: x >= 1, "at least 1", "1000"),
    "clip_norm": (lambda x: 0 < x < math.inf, "above 0", "1"),
    "validation_size": (lambda x: 0 <= x < 1, "a share of the training images in [0, 1)", "0.1"),
    "mixup": (lambda x: 0 <= x <= 4, "from 0 to 4", "1, and 0 for none"),
    "image_size": (lambda x: 1 <= x <= 4096, "from 1 to 4096 pixels", "32"),
    "update_interval": (lambda x: x >= 1, "at least 1 step", "100"),
    "drop_fraction": (lambda x: 0 < x <= 1, "in (0, 1]", "0.3 moves three weights of ten"),
    "dynamics_end": (lambda x: 0 < x <= 1, "a share of the run in (0, 1]", "0.75"),
    "levels": (lambda x: x >= 1, "at least 1", "10"),
    "rewind_epoch": (lambda x: x >= 0, "0 or more", "1"),
}
