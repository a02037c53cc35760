"""The state of a run in one file: tensors and plain values, with a checksum, and nothing that could run code.

The file is a safetensors file. Its metadata hold two texts: `state`, the JSON of the nested state, in which a
tensor is the object `{"$tensor": name}`; and `sha256`, the SHA-256 of the whole file with zeros in place of
that very number. Floats in JSON are written with the digits that give the same float back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dctps.files import write_atomically

State = dict[str, Any]

_TENSOR = "$tensor"
_DIGEST = b'"sha256":"%b"'
_ZEROS = b"0" * 64


class StateError(ValueError):
    """A state file is damaged, or does not fit what it is loaded into; the message says in what."""


def write_state(path: Path | str, state: State) -> None:
    """Write nested dicts (with str keys) and lists of tensors and JSON values to `path`, atomically.

    Raises:
        OSError: the file cannot be written; `path` is then as it was.
        TypeError: something in `state` is neither.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, "", tensors))
    content = safetensors.torch.save(tensors, metadata={"state": text, "sha256": _ZEROS.decode()})
    digest = hashlib.sha256(content).hexdigest().encode()
    # The first place is the metadata's: within JSON's texts, where alone it could stand earlier, `"` is `\"`.
    write_atomically(Path(path), content.replace(_DIGEST % _ZEROS, _DIGEST % digest, 1))


def read_state(path: Path | str) -> State:
    """The inverse of `write_state`; tensors are on the CPU.

    Raises:
        OSError: the file cannot be read.
        StateError: it is damaged.
    """
    content = Path(path).read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        digest = header["__metadata__"]["sha256"].encode()
        blank = content.replace(_DIGEST % digest, _DIGEST % _ZEROS, 1)
        if hashlib.sha256(blank).hexdigest().encode() != digest:
            raise StateError("its checksum is wrong")
        tensors = safetensors.torch.load(content)
        state = _unpack(json.loads(header["__metadata__"]["state"]), tensors)
    except StateError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StateError("it is no state file, or was cut short") from None
    if not isinstance(state, dict):
        raise StateError("it holds no state")
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            # Copies: safetensors refuses tensors that share memory, as those of a layer used twice do.
            tensors[name] = value.detach().cpu().clone().contiguous()
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


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case dict():
            if _TENSOR in value:
                return tensors[value[_TENSOR]]
            return {key: _unpack(item, tensors) for key, item in value.items()}
        case list():
            return [_unpack(item, tensors) for item in value]
    return value
