"""PEFT's folders of its method SHiRA, read and written without PEFT.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter has, for each linear layer of
shape (m, n), `base_model.model.<name>.shira_weight` (r (m + n),) and `...shira_indices` int32 (2, r (m + n)),
rows and columns, and for each module of `modules_to_save` its tensors as `base_model.model.<name>.<tensor>`.

Reference: Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024; the format is that of PEFT 0.21.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dctps.adapters.adapt import check_name, refuse_taken
from dctps.adapters.file import named_or_active, parts_of, place, saved_by
from dctps.adapters.switch import layers_of
from dctps.adapters.targets import matches, named_own
from dctps.checkpoint import CheckpointError
from dctps.checkpoint.container import parse_json, shorten
from dctps.checkpoint.state import cast
from dctps.files import make_folder, write_atomically
from dctps.networks.surgery import refuse_wrapped
from dctps.nn import DpSLayer
from dctps.nn.adapter import build_delta
from dctps.nn.versions import version

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
_VALUES, _INDICES = ".shira_weight", ".shira_indices"


def save_shira(
    model: nn.Module,
    folder: Path | str,
    name: str | None = None,
    *,
    base_model: str | None = None,
) -> None:
    """Write an adapter of linear layers as a SHiRA adapter of PEFT: `PeftModel.from_pretrained` loads it.

    PEFT has one r for all layers and r (m + n) values in each, so the smallest such r that holds every layer
    is taken, and the rest are zeros at free positions: the network computes the same.

    Args:
        model: with adapters, merged or not.
        folder: made if it is not there.
        name: of the adapter; by default the one in use.
        base_model: name or path of the pretrained network, which PEFT's tools read.

    Raises:
        ValueError: an adapted layer is no `nn.Linear`, or has too many values for PEFT's r; with its name.
        OSError: the files cannot be written.
    """
    name = named_or_active(model, name)
    deltas, tensors, trained = parts_of(model, name)
    layers = {key: layer for key, (layer, _) in layers_of(model, name).items()}
    for key, layer in layers.items():
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"layer {key!r} is a {type(layer).__name__}, and PEFT's SHiRA has nn.Linear alone: use "
                f"save_adapter"
            )
    r = max(1, *(-(-delta.nnz // sum(delta.offset.shape)) for delta in deltas.values()))
    content: dict[str, Tensor] = {}
    for key, delta in deltas.items():
        values, support = _padded(key, delta, r)
        columns = delta.offset.in_features
        content[_PREFIX + key + _VALUES] = values
        content[_PREFIX + key + _INDICES] = torch.stack([support // columns, support % columns]).to(
            torch.int32
        )
    modules = dict(named_own(model))
    saved = sorted({*trained, *(key.rpartition(".")[0] for key in tensors)})
    for key in saved:
        for attribute, tensor in version(modules[key], name).items():
            content[f"{_PREFIX}{key}.{attribute}"] = tensor.cpu().contiguous()
    folder = Path(folder)
    make_folder(folder)
    config = json.dumps(_config(model, list(deltas), saved, r, base_model), indent=2, sort_keys=True)
    write_atomically(folder / WEIGHTS, safetensors.torch.save(content, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, config.encode())


def load_shira_(model: nn.Module, folder: Path | str, name: str = "default") -> nn.Module:
    """Put the SHiRA adapter of a folder of PEFT's on a network, and in use.

    A folder that is refused changes nothing.

    Args:
        model: the pretrained network, changed in place.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        name: that the adapter gets.

    Returns:
        the model, which trains this adapter alone, as after `adapt_`.

    Raises:
        CheckpointError: there is no such folder, or it is of another method or network, or damaged.
        ValueError: an adapter of this name is there.
    """
    refuse_wrapped(model)
    check_name(name)
    refuse_taken(model, name)
    path = Path(folder) / WEIGHTS
    entries = _entries(Path(folder))
    pairs = {key[: -len(_VALUES)]: tensor for key, tensor in entries.items() if key.endswith(_VALUES)}
    indices = {key[: -len(_INDICES)]: tensor for key, tensor in entries.items() if key.endswith(_INDICES)}
    if not pairs or set(pairs) != set(indices):
        raise CheckpointError(f"{path} does not have both weights and indices for each layer: save it again")
    rest = {key: t for key, t in entries.items() if not key.endswith((_VALUES, _INDICES))}
    own = dict(named_own(model))
    layers = {key: _linear(path, own, key) for key in pairs}
    deltas = {key: _delta(path, key, layers[key], pairs[key], indices[key]) for key in pairs}
    saved = saved_by(path, own, rest, sorted({key.rpartition(".")[0] for key in rest}))
    ready: dict[str, Tensor] = {}
    for key, tensor in rest.items():
        owner, _, attribute = key.rpartition(".")
        target = getattr(own[owner], attribute)
        if target.shape != tensor.shape:
            raise CheckpointError(
                f"{path} is for another network: {shorten(key)} has the shape {tuple(tensor.shape)} in the "
                f"file and {tuple(target.shape)} here"
            )
        ready[key] = _cast(path, key, tensor, target.dtype)
    place(model, name, layers, deltas, saved, ready)
    return model


def _padded(name: str, delta: DpSLayer, r: int) -> tuple[Tensor, Tensor]:
    """r (m + n) values and their sorted flat positions: S's own, and zeros at the first free positions."""
    values, support = delta.values.detach().cpu(), delta.support.cpu()
    m, n = delta.offset.shape
    missing = r * (m + n) - delta.nnz
    if r * (m + n) > m * n:
        raise ValueError(
            f"layer {name!r} would have r (m + n) = {r * (m + n)} values at r={r}, and its weight has "
            f"{m * n}: PEFT refuses that. Give the layers as many values as adapt_(model, r=...) does, or "
            f"use save_adapter"
        )
    if missing:
        free = torch.ones(min(m * n, delta.nnz + missing), dtype=torch.bool)
        free[support[support < len(free)]] = False
        added = free.nonzero().squeeze(1)[:missing]
        support, order = torch.cat([support, added]).sort()
        values = torch.cat([values, values.new_zeros(missing)])[order]
    return values.clone(), support


def _config(
    model: nn.Module, targets: list[str], saved: list[str], r: int, base_model: str | None
) -> dict[str, Any]:
    """What PEFT's `ShiraConfig` is made from."""
    others = [
        name for name, module in named_own(model) if isinstance(module, nn.Linear) and name not in targets
    ]
    # A list means ends of names: where that would take in other layers, the whole names as an expression.
    exact = not any(matches(name, targets) for name in others if name not in saved)
    return {
        "auto_mapping": {"base_model_class": type(model).__name__, "parent_library": type(model).__module__},
        "base_model_name_or_path": base_model,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
        "mask_type": "random",
        "modules_to_save": saved or None,
        "peft_type": "SHIRA",
        "r": r,
        "random_seed": None,
        "revision": None,
        "target_modules": targets if exact else "|".join(map(re.escape, targets)),
        "task_type": None,
    }


def _entries(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder, by the names that they have in the network."""
    config = _content(folder / CONFIG)
    try:
        found = parse_json(config, _refuse)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG} is no PEFT configuration: {error}") from None
    if found.get("peft_type") != "SHIRA":
        raise CheckpointError(
            f"{folder} is an adapter of the method {shorten(found.get('peft_type'))}, and only SHIRA is a "
            f"sparse S: load it with peft"
        )
    path = folder / WEIGHTS
    try:
        tensors = safetensors.torch.load(_content(path))
    except Exception as error:  # also torch refuses a shape, and says so in several ways
        raise CheckpointError(
            f"{path} is no safetensors file ({shorten(str(error))}): copy it again"
        ) from None
    if wrong := [key for key in tensors if not key.startswith(_PREFIX)]:
        raise CheckpointError(
            f"{path} has the tensor {shorten(wrong[0])}, which PEFT does not write: save it again"
        )
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check the path") from None


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


def _linear(path: Path, own: dict[str, nn.Module], name: str) -> nn.Linear:
    layer = own.get(name)
    if type(layer) is not nn.Linear:
        what = "no such layer" if layer is None else f"a {type(layer).__name__} there"
        raise CheckpointError(
            f"{path} is for another network: it adapts the linear layer {shorten(name)}, and this one has "
            f"{what}"
        )
    return layer


def _delta(path: Path, name: str, layer: nn.Linear, values: Tensor, indices: Tensor) -> DpSLayer:
    """S of one layer; PEFT's positions may come in any order."""
    m, n = layer.weight.shape
    if values.dim() != 1 or indices.shape != (2, len(values)) or not values.is_floating_point():
        raise CheckpointError(
            f"{path}: layer {shorten(name)} has {tuple(values.shape)} values at {tuple(indices.shape)} "
            f"indices: save it again"
        )
    rows, columns = indices.long()
    inside = (rows >= 0) & (rows < m) & (columns >= 0) & (columns < n)
    flat = (rows * n + columns).sort()
    if not bool(inside.all()) or bool((flat.values.diff() == 0).any()):
        raise CheckpointError(
            f"{path} is for another network: layer {shorten(name)} has indices outside of {m} x {n}, or one "
            f"twice"
        )
    delta = build_delta(layer, name, support=flat.values)
    with torch.no_grad():
        delta.values.copy_(_cast(path, name, values[flat.indices], delta.values.dtype))
    return delta


def _cast(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    try:
        return cast(name, tensor, dtype)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
