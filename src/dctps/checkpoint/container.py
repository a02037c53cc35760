"""A safetensors file with one JSON text of metadata and a checksum over every byte.

The file is made here, byte by byte, so that its size is known without writing it and the same content
gives the same file. It is read by the safetensors library, after checks that bound what is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

# Every file begins so, after the eight bytes of the header's length; then come the checksum's digits.
_OPENING = b'{"__metadata__":{"dctps":"{\\"sha256\\":\\"'
_DIGITS = slice(8 + len(_OPENING), 8 + len(_OPENING) + 64)
_BLANK = b"0" * 64

# Products of sizes below this are exact in int64 and in float64.
MAX_NUMBERS = 1 << 53

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


class CheckpointError(ValueError):
    """A file cannot be loaded: there is none, it is damaged, or it is of another model."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file that is to be written: what the header says of it, and how it is made."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def header(entries: Mapping[str, Entry], fields: Mapping[str, Any]) -> bytes:
    """All bytes before the data, with a blank checksum; ValueError for what the format cannot hold."""
    text = json.dumps({"sha256": _BLANK.decode(), **fields}, separators=(",", ":"), allow_nan=False)
    table: dict[str, Any] = {"__metadata__": {"dctps": text}}
    at = 0
    for name, entry in _in_order(entries):
        if entry.dtype not in _CODES:
            raise ValueError(f"{name!r} is {entry.dtype}, which a checkpoint cannot hold: convert it first")
        span = [at, at + entry.nbytes]
        table[name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": span}
        at = span[1]
    text = json.dumps(table, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode()


def write(entries: Mapping[str, Entry], fields: Mapping[str, Any]) -> bytes:
    """The whole file; errors as of `header`."""
    content = bytearray(header(entries, fields))
    for _, entry in _in_order(entries):
        content += entry.make().detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    content[_DIGITS] = _checksum(content)
    return bytes(content)


def read(path: Path, max_header: int, max_data: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file, checked bit by bit against its checksum.

    No header above `max_header` bytes is read, and no tensors above `max_data`. A file that is missing, or
    that `write` could not have made, is a `CheckpointError`.
    """
    content = _content(path, max_header, max_data)
    if content[8 : _DIGITS.start] != _OPENING or len(content) < _DIGITS.stop:
        _foreign(path, content)
    start = 8 + int.from_bytes(content[:8], "little")
    if start - 8 > max_header or start > len(content):
        refuse_damaged(path, f"its header claims {start - 8} bytes")
    if content[_DIGITS] != _checksum(content):
        refuse_damaged(path, "its SHA-256 does not match")
    # The checksum is no secret: whoever made this file may have made it fit. Nothing below trusts it.
    table = parse_json(content[8:start], lambda reason: refuse_damaged(path, reason))
    notes = table.pop("__metadata__", None)
    if not isinstance(notes, dict) or set(notes) != {"dctps"} or not isinstance(notes["dctps"], str):
        refuse_damaged(path, "its header has no metadata")
    fields = parse_json(
        notes["dctps"].encode("utf-8", "replace"), lambda reason: refuse_damaged(path, reason)
    )
    try:  # safetensors makes sure that the tensors lie end to end, each as long as its dtype and shape say
        tensors = safetensors.torch.load(content)
    except Exception as error:  # also torch refuses a shape, and says so in several ways
        refuse_damaged(path, shorten(str(error)))
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            refuse_damaged(path, f"the tensor {shorten(name)} holds a boolean that is neither 0 nor 1")
    fields.pop("sha256", None)
    return tensors, fields


def parse_json(text: bytes, refuse: Callable[[str], NoReturn]) -> dict[str, Any]:
    """A JSON object of distinct keys and finite numbers; `refuse` is called for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        refuse(f"its header is no JSON: {shorten(str(error))}")
    if not isinstance(value, dict):
        refuse("its header is no JSON object")
    return value


def shorten(text: object) -> str:
    """A value from a file for a one-line message."""
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _content(path: Path, max_header: int, max_data: int) -> bytes:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path} is no file: check the path")
        if about.st_size > 8 + max_header + max_data:
            raise CheckpointError(
                f"{path} is of another architecture: it has {about.st_size:,} bytes, more than any "
                f"checkpoint of this model"
            )
        with path.open("rb") as file:
            return file.read(about.st_size)  # a larger number would be allocated, whatever is there
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}: check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check the path") from None


def _checksum(content: bytes | bytearray) -> bytes:
    """64 hexadecimal digits over all bytes, their own place taken as zeros."""
    digest = hashlib.sha256(content[: _DIGITS.start])
    digest.update(_BLANK)
    digest.update(memoryview(content)[_DIGITS.stop :])
    return digest.hexdigest().encode()


def _in_order(entries: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    """Wide elements first, so that all are aligned."""
    return sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def _foreign(path: Path, content: bytes) -> NoReturn:
    """Say what a file is that does not begin as one of `write`, and how it is loaded."""
    same = "give the model the layers it had (the same sparsify_ call), then model.load_state_dict"
    if content.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path} was written by torch.save: {same}(torch.load({str(path)!r}))")
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS and no weights: fetch them by `git lfs pull`")
    try:
        safetensors.torch.load(content)
        ours = b"sha256" in content[: _DIGITS.start]  # one of ours, with a flipped bit
    except safetensors.SafetensorError:
        ours = True
    if ours:
        refuse_damaged(path, "it does not begin as one")
    raise CheckpointError(
        f"{path} holds a plain state dict, as safetensors, Trainer and accelerate write it, and not what "
        f"save_pretrained writes: {same}(safetensors.torch.load_file({str(path)!r}))"
    )


def refuse_damaged(path: Path, reason: str) -> NoReturn:
    """Raise the error of a file that `write` did not make, or that has changed since."""
    raise CheckpointError(
        f"{path} is no readable checkpoint ({reason}): copy it again, or train again"
    ) from None
