"""Read the published CIFAR pickles as data: nothing that a file names is ever looked up or called.

The small stack machine here knows just the opcodes that occur in the published files (protocol 2, written by
Python 2's cPickle) and reads no more than the bytes hold. Where pickle would import and call, it writes down
the name and the arguments.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dctps.data.tensors import DataError

_KNOWN_NAMES = (b"numpy.core.multiarray _reconstruct", b"numpy ndarray", b"numpy dtype")
_MARK = object()

# By opcode: the bytes to pass over after PROTO, BINPUT, LONG_BINPUT.
_SKIPPED = {b"\x80": 1, b"q": 1, b"r": 4}
# By opcode: what it puts on the stack.
_PUSHED: dict[bytes, Callable[[io.BytesIO], object]] = {
    b"K": lambda stream: _number(stream, "<B"),  # BININT1
    b"M": lambda stream: _number(stream, "<H"),  # BININT2
    b"J": lambda stream: _number(stream, "<i"),  # BININT
    b"U": lambda stream: _take(stream, _number(stream, "<B")),  # SHORT_BINSTRING
    b"T": lambda stream: _take(stream, _number(stream, "<I")),  # BINSTRING
    b"N": lambda _: None,
    b"\x89": lambda _: False,  # NEWFALSE
    b"]": lambda _: [],
    b"}": lambda _: {},
    b"(": lambda _: _MARK,
}


@dataclass(frozen=True)
class _Name:
    """A name that pickle would import, "module attribute"."""

    name: bytes


@dataclass
class _Call:
    """What pickle would get by calling `name(*arguments)` and giving the result `state`."""

    name: bytes
    arguments: object
    state: object = None


def read_batch(data: bytes, label_key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels and labels of one batch file of the CIFAR "python version".

    Args:
        data: the file, a protocol 2 pickle of a dictionary as Python 2 wrote it.
        label_key: b"labels" or b"fine_labels".

    Returns:
        Pixels, uint8, (n, row length), read-only; labels, int64, (n,).

    Raises:
        DataError: it is no such pickle.
    """
    try:
        batch = _read(data)
        if not isinstance(batch, dict):
            raise ValueError("its top is no dictionary")
        return _array(batch[b"data"]), _labels(batch[label_key])
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"not the pickle of a CIFAR batch ({type(error).__name__}: {error})") from error


def _read(data: bytes) -> object:
    stream = io.BytesIO(data)
    stack: list[Any] = []
    while (code := _take(stream, 1)) != b".":
        if code in _SKIPPED:
            _take(stream, _SKIPPED[code])
        elif code in _PUSHED:
            stack.append(_PUSHED[code](stream))
        elif code == b"c":  # GLOBAL
            stack.append(_name(stream))
        elif code == b"t":  # TUPLE
            stack.append(tuple(_pop_to_mark(stack)))
        elif code in b"\x85\x86\x87":  # TUPLE1, TUPLE2, TUPLE3
            stack.append(tuple(_pop(stack, code[0] - 0x84)))
        elif code == b"e":  # APPENDS
            items = _pop_to_mark(stack)
            _top(stack, list).extend(items)
        elif code == b"u":  # SETITEMS
            items = _pop_to_mark(stack)
            _top(stack, dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif code == b"R":  # REDUCE
            (arguments,) = _pop(stack, 1)
            stack[-1] = _Call(_top(stack, _Name).name, arguments)
        elif code == b"b":  # BUILD
            (state,) = _pop(stack, 1)
            _top(stack, _Call).state = state
        else:
            raise ValueError(f"opcode {code!r} has no place there")
    (result,) = stack
    return result


def _take(stream: io.BytesIO, count: int) -> bytes:
    taken = stream.read(count)
    if len(taken) < count:
        raise ValueError("it ends too early")
    return taken


def _number(stream: io.BytesIO, layout: str) -> int:
    (number,) = struct.unpack(layout, _take(stream, struct.calcsize(layout)))
    return int(number)


def _name(stream: io.BytesIO) -> _Name:
    name = stream.readline()[:-1] + b" " + stream.readline()[:-1]
    if name not in _KNOWN_NAMES:
        raise ValueError(f"the name {name[:60]!r} has no place there")
    return _Name(name)


def _key(value: object) -> bytes:
    # Hashing anything else could recurse without bound, through nested tuples.
    if not isinstance(value, bytes):
        raise ValueError(f"a {type(value).__name__} is no key")
    return value


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
            name=b"numpy.core.multiarray _reconstruct",
            state=(1, (int(rows), int(columns)), _Call(b"numpy dtype", (b"u1", 0, 1)), False, bytes(raw)),
        ) if len(raw) == rows * columns:
            return np.frombuffer(raw, np.uint8).reshape(rows, columns)
    raise ValueError("'data' is no 2-D array of uint8")


def _labels(value: object) -> NDArray[np.int64]:
    if not isinstance(value, list) or any(type(label) is not int for label in value):
        raise ValueError("the labels are no list of integers")
    return np.array(value, np.int64)
