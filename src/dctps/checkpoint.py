"""A model's tensors in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from dctps.files import write_atomically


def save_state(model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `model`'s state dict to `path`, atomically.

    Args:
        model: any module; offsets are no part of a state dict, so nothing of their size is written.
        path: of the file; its folder exists.
        metadata: kept as one JSON text in the header.

    Raises:
        OSError: the file cannot be written.
    """
    # Copies: safetensors refuses tensors that share memory, as those of a layer used twice do.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    content = safetensors.torch.save(tensors, metadata={"dctps": json.dumps(dict(metadata))})
    write_atomically(path, content)


def load_state(model: nn.Module, path: Path) -> dict[str, Any]:
    """Fill `model` from a file of `save_state`, and return its metadata.

    Args:
        model: with the very same tensors: names, shapes and dtypes.
        path: of the file.

    Raises:
        ValueError: there is no such file, it is damaged, or it is of another architecture.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("dctps", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {path}: check the path") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is no readable checkpoint ({error}): copy it again, or train again"
        ) from None

    expected = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    if found != expected:
        odd = min(name for name in expected | found if expected.get(name) != found.get(name))
        raise ValueError(
            f"{path} is of another architecture: {odd!r} is {_describe(found.get(odd))} in the file and "
            f"{_describe(expected.get(odd))} in the model"
        )
    model.load_state_dict(tensors)
    return dict(metadata)


def _describe(tensor: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if tensor is None else f"{tensor[1]} of shape {tensor[0]}"
