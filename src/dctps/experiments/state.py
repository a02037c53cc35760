"""The state of a run in one file: tensors and plain values, with a checksum, and nothing that could run code.

The file is one of `dctps.checkpoint.container`. Its metadata hold the text `state`: the JSON of the nested
state, in which a tensor is the object `{"$tensor": name}`. Floats in JSON are written with the digits that
give the same float back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dctps.checkpoint import CheckpointError, container
from dctps.files import write_atomically

State = dict[str, Any]

_TENSOR = "$tensor"


class StateError(ValueError):
    """A state file is damaged, or does not fit what it is loaded into; the message says in what."""


def write_state(path: Path | str, state: State) -> None:
    """Write nested dicts (with str keys) and lists of tensors and JSON values to `path`, atomically.

    Anything else in the state is a TypeError.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, "", tensors))
    entries = {name: container.Entry(t.dtype, tuple(t.shape), t.detach) for name, t in tensors.items()}
    write_atomically(Path(path), container.write(entries, {"state": text}))


def read_state(path: Path | str) -> State:
    """The inverse of `write_state`, with tensors on the CPU; a `StateError` where the file is damaged."""
    path = Path(path)
    length = path.stat().st_size
    try:
        try:
            tensors, fields = container.read(path, length, length)
        except CheckpointError:  # an earlier version wrote it
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            tensors, fields = safetensors.torch.load(content), header["__metadata__"]
        state = json.loads(
            fields["state"], object_hook=lambda value: tensors[value[_TENSOR]] if _TENSOR in value else value
        )
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StateError("it is no state file, or was cut short") from None
    if not isinstance(state, dict):
        raise StateError("it holds no state")
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            tensors[name] = value
            return {_TENSOR: name}
        case dict():
            if any(not isinstance(key, str) or key == _TENSOR for key in value):
                raise TypeError(f"the keys of {name or 'the state'} must be texts other than {_TENSOR!r}")
            return {key: _pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
        case list():
            return [_pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(
        f"{name} is a {type(value).__name__}: a state holds tensors, numbers, texts, lists, dicts"
    )
