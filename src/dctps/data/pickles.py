"""Read the published CIFAR pickles as data: nothing that a file names is ever looked up or called.

The standard library's `pickletools.genops` splits the bytes into opcodes, which runs nothing and reads no
more than the bytes hold. The small stack machine here knows just the opcodes that occur in the published
files; where pickle would import and call, it writes down the name and the arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dctps.data.tensors import DataError

_KNOWN_NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
_NUMBERS_AND_STRINGS = ("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING")
_NO_EFFECT = ("PROTO", "BINPUT", "LONG_BINPUT", "STOP")
_MARK = object()
_PUSHED: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}


@dataclass(frozen=True)
class _Name:
    """A name that pickle would import."""

    name: str


@dataclass
class _Call:
    """What pickle would get by calling `name(*arguments)` and giving the result `state`."""

    name: str
    arguments: object
    state: object = None


def read_batch(data: bytes, label_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels and labels of one batch file of the CIFAR "python version".

    Args:
        data: the file, a protocol 2 pickle of a dictionary as Python 2 wrote it.
        label_key: "labels" or "fine_labels".

    Returns:
        Pixels, uint8, (n, row length), read-only; labels, int64, (n,).

    Raises:
        DataError: it is no such pickle.
    """
    try:
        batch = _read(data)
        if not isinstance(batch, dict):
            raise ValueError("its top is no dictionary")
        return _array(batch["data"]), _labels(batch[label_key])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"not the pickle of a CIFAR batch ({type(error).__name__}: {error})") from error


def _read(data: bytes) -> object:
    stack: list[Any] = []
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _NO_EFFECT:
            pass
        elif name in _NUMBERS_AND_STRINGS:
            stack.append(argument)
        elif name in _PUSHED:
            stack.append(_PUSHED[name]())
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(_pop(stack, int(name[-1]))))
        elif name == "APPENDS":
            items = _pop_to_mark(stack)
            _top(stack, list).extend(items)
        elif name == "SETITEMS":
            items = _pop_to_mark(stack)
            _top(stack, dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL" and argument in _KNOWN_NAMES:
            stack.append(_Name(str(argument)))
        elif name == "REDUCE":
            (arguments,) = _pop(stack, 1)
            callee = _top(stack, _Name)
            stack[-1] = _Call(callee.name, arguments)
        elif name == "BUILD":
            (state,) = _pop(stack, 1)
            _top(stack, _Call).state = state
        else:
            raise ValueError(f"opcode {name} {str(argument)[:60]!r} has no place there")
    (result,) = stack
    return result


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("an opcode finds too little on the stack")
    items = stack[-count:]
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _top(stack: list[Any], kind: type[Any]) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"an opcode finds a {type(stack[-1]).__name__} where a {kind.__name__} belongs")
    return stack[-1]


def _array(value: object) -> NDArray[np.uint8]:
    match value:
        case _Call(
            name="numpy.core.multiarray _reconstruct",
            state=(
                1,
                (int(rows), int(columns)),
                _Call(name="numpy dtype", arguments=("u1", 0, 1)),
                False,
                str(raw),
            ),
        ) if len(raw) == rows * columns:
            return np.frombuffer(raw.encode("latin-1"), np.uint8).reshape(rows, columns)
    raise ValueError("'data' is no 2-D array of uint8")


def _labels(value: object) -> NDArray[np.int64]:
    if not isinstance(value, list) or any(type(label) is not int for label in value):
        raise ValueError("the labels are no list of integers")
    return np.array(value, np.int64)
