"""From a model to a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dctps.checkpoint import container
from dctps.checkpoint.container import Entry
from dctps.checkpoint.manifest import NORMS, Manifest, Norms, describe
from dctps.checkpoint.state import STATISTICS, State, cast, folded_names, is_norm, state_of
from dctps.files import write_atomically

FILE = "model.safetensors"

# The longest header of a file: so much, and for each tensor of the model so much more and its name.
_HEADER_BASE = 1 << 16
_HEADER_PER_TENSOR = 1 << 10
_HEADER_PER_LETTER = 16

_VALUES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_pretrained(
    model: nn.Module,
    folder: Path | str,
    *,
    values_dtype: torch.dtype | None = None,
    norms: Norms = "full",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `folder/model.safetensors`, atomically: S, alpha, biases, norms and what stayed dense.

    Never D. A support that its layer's seed gives costs nothing; any other is packed.

    Args:
        model: any module, converted in part, whole or not at all; also compiled or wrapped.
        folder: made if it is not there.
        values_dtype: of the stored values: float16, bfloat16, float32, float64; None: the layers' own.
        norms: `"full"`; or for a file that only inference can use, in a fraction of the bytes: `"half"`
            (float16), `"folded"` (each batch norm as scale and shift) or `"folded-half"`.
        metadata: kept with the file, ready for JSON.

    Raises:
        ValueError: something that a file cannot hold; with its name.
        OSError: the file cannot be written; one that was there is as it was.
    """
    folder = Path(folder)
    content = container.write(*_outline(model, values_dtype, norms, metadata))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, content)


def save_state(
    model: nn.Module,
    path: Path | str,
    metadata: Mapping[str, Any] | None = None,
    *,
    values_dtype: torch.dtype | None = None,
) -> None:
    """Write `model` to the file `path`, whose folder exists, atomically.

    All is stored bit for bit, the values with a `values_dtype` apart. The other arguments and the errors are
    those of `save_pretrained`.
    """
    write_atomically(Path(path), container.write(*_outline(model, values_dtype, "full", metadata)))


def file_size(
    model: nn.Module,
    *,
    values_dtype: torch.dtype | None = None,
    norms: Norms = "full",
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Bytes of the file that `save_pretrained` writes with the same arguments, without making its tensors.

    On the meta device supports are taken as drawn from their seeds. Errors are those of `save_pretrained`.
    """
    entries, fields = _outline(model, values_dtype, norms, metadata)
    return len(container.header(entries, fields)) + sum(entry.nbytes for entry in entries.values())


def max_header(state: State) -> int:
    """The longest header of a file of this state, in bytes."""
    names = [*state.slots, *state.folded, *state.layers]
    # A layer has S and alpha in a record where a dense one has its weight: twice covers either.
    return _HEADER_BASE + 2 * sum(_HEADER_PER_TENSOR + _HEADER_PER_LETTER * len(name) for name in names)


def _outline(
    model: nn.Module, values_dtype: torch.dtype | None, norms: Norms, metadata: Mapping[str, Any] | None
) -> tuple[dict[str, Entry], dict[str, Any]]:
    """What the file will hold, with the tensors still to be made."""
    if values_dtype not in _VALUES:
        raise ValueError(f"values_dtype must be None or a floating-point dtype, got {values_dtype}")
    if norms not in NORMS:
        raise ValueError(f"norms must be one of {', '.join(NORMS)}, got {norms!r}")
    state = state_of(model, norms)
    described = {name: describe(name, layer) for name, layer in state.layers.items()}
    records = [record for record, _ in described.values()]
    fields = Manifest(records, norms, dict(metadata or {}), state.projections).to_fields()

    entries = {}
    layers = state.layers.items()
    if values := [(f"{name}.values", layer.values) for name, layer in layers]:
        entries["values"] = _joined(values, values_dtype)
    if alphas := [(f"{name}.alpha", layer.alpha) for name, layer in layers if layer.alpha is not None]:
        entries["alpha"] = _joined(alphas, None)
    if codes := [bits for _, bits in described.values() if bits is not None]:
        packed = torch.from_numpy(np.packbits(np.concatenate(codes)))
        entries["support"] = Entry(torch.uint8, tuple(packed.shape), lambda: packed)
    for name, slot in state.slots.items():
        if slot.tensor.layout != torch.strided:
            raise ValueError(f"{name!r} is stored as {slot.tensor.layout}, which a checkpoint cannot hold")
        dtype = torch.float16 if norms.endswith("half") and is_norm(slot) else slot.tensor.dtype
        entries[name] = _entry(name, slot.tensor, dtype)
    for name, module in state.folded.items():
        for path, tensor in zip(folded_names(name), _fold(module), strict=True):
            if path in entries:
                raise ValueError(f"{path!r} stands for a folded norm and for a tensor: rename the latter")
            entries[path] = _entry(path, tensor, torch.float16 if norms == "folded-half" else tensor.dtype)

    length, limit = len(container.header(entries, fields)), max_header(state)
    if length > limit:
        raise ValueError(f"names and metadata take {length} bytes, and {limit} is the most: shorten them")
    return entries, fields


def _joined(parts: list[tuple[str, nn.Parameter]], dtype: torch.dtype | None) -> Entry:
    stored = dtype or functools.reduce(torch.promote_types, (tensor.dtype for _, tensor in parts))

    def make() -> Tensor:
        return torch.cat([cast(name, tensor.detach().cpu(), stored) for name, tensor in parts])

    return Entry(stored, (sum(tensor.numel() for _, tensor in parts),), make)


def _entry(name: str, tensor: Tensor, dtype: torch.dtype) -> Entry:
    return Entry(dtype, tuple(tensor.shape), lambda: cast(name, tensor.detach().cpu(), dtype))


def _fold(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The scale and shift with which y = scale * x + shift is the norm's output in evaluation."""
    weight, bias, mean, var = (getattr(norm, key).detach().double() for key in STATISTICS)
    scale = weight / (var + norm.eps).sqrt()
    return scale.to(norm.weight.dtype), (bias - mean * scale).to(norm.weight.dtype)
