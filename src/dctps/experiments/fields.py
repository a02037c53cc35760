"""The type of each field of a run: what fits it, whoever gives the value, and how a word is read.

This module does not import torch; numbers of numpy and torch are known by what they can do.
"""

from __future__ import annotations

import operator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dctps.names import lookup

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def of_type(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field has it: a plain bool, int, float, str, tuple or None.

    Numbers of numpy and torch become Python's, lists become tuples, and a single value in the place of a list
    is a list of one. A text is no number: `"0.1"` comes from a word that nobody has read.

    Args:
        name: of the field, for the message.
        kind: its annotation: one of these types, a `Literal` of texts, or a union of them.
        value: given.

    Raises:
        ValueError: the value does not fit, with the nearest choice where there are only choices.
    """
    kinds = _kinds(kind)
    for one in kinds:
        try:
            return _fit(name, one, value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch refuses by RuntimeError
            continue
    (choices,) = [get_args(one) for one in kinds if get_origin(one) is Literal] or [()]
    if isinstance(value, str) and choices and kinds == [kinds[0]]:
        lookup(name, dict.fromkeys(choices), value)
    wanted = " or ".join([*choices, *(_described(one) for one in kinds if _described(one))])
    raise ValueError(f"{name} has the wrong type: {wanted} is wanted, got {value!r}")


def read_word(kind: Any, word: str) -> Any:
    """The value that `word` writes for a field of this annotation; the word itself where it writes none.

    `true` and `false` in any case are truth values, `none` leaves open what may be left open, and numbers are
    written as Python takes them: `.05`, `5e-2`, `01`.
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
    """The types of values that fit without another look; nearly all that ever come."""
    plain = {one for one in _kinds(kind) if one in (NoneType, *_WORDS)}
    return frozenset(plain | {int} if float in plain else plain)


def _kinds(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _fit(name: str, kind: Any, value: Any) -> Any:
    """`value` as one of the kinds of a field; every error of it says that it is no such value."""
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
        return f"a list of {_WORDS[get_args(kind)[0]].split()[-1]}s"
    return _WORDS.get(kind, "")
