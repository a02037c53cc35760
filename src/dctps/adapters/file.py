"""An adapter as one small file, without the network that it is for: the bytes of docs/checkpoint.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dctps.adapters.adapt import check_name, install, own_memory, refuse_taken
from dctps.adapters.switch import active_adapter, layers_of
from dctps.adapters.targets import Targets, named_own
from dctps.checkpoint import CheckpointError, container, load_state, manifest, save_state
from dctps.checkpoint.container import shorten
from dctps.files import make_folder
from dctps.networks.surgery import refuse_wrapped
from dctps.nn import DpSLayer
from dctps.nn.adapter import as_delta, base_weight, can_adapt, plain_like
from dctps.nn.versions import BASE, own_tensors, version, versions_of

ADAPTER_FILE = "adapter.safetensors"

# The longest header of an adapter's file: so much, and for each module of the network so much and its name.
_HEADER_BASE = 1 << 16
_HEADER_PER_MODULE = 1 << 12
_HEADER_PER_LETTER = 1 << 7

Tensors = dict[str, Tensor]
Saved = dict[str, tuple[nn.Module, list[str], bool]]


def save_adapter(
    model: nn.Module,
    folder: Path | str,
    name: str | None = None,
    *,
    values_dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter to `folder/adapter.safetensors`, atomically: S, and what it trains beside S.

    Nothing of W_0 is in the file but a checksum of it. A support that is drawn from its seed costs nothing,
    any other is packed. Norms whose running statistics have changed are in it, too.

    Args:
        model: with adapters, merged or not.
        folder: made if it is not there.
        name: of the adapter; by default the one in use.
        values_dtype: of the stored values of S: float16, bfloat16, float32, float64; None: the layers' own.

    Raises:
        ValueError: there is no such adapter, or something that a file cannot hold.
        OSError: the file cannot be written; one that was there is as it was.
    """
    name = named_or_active(model, name)
    deltas, tensors, trained = parts_of(model, name)
    layers = {key: layer for key, (layer, _) in layers_of(model, name).items()}
    notes = {"base": checksum_of(layers), "trained": trained}
    make_folder(Path(folder))
    path = Path(folder) / ADAPTER_FILE
    save_state(_tree({**deltas}, tensors), path, {"adapter": notes}, values_dtype=values_dtype)


def adapter_state(model: nn.Module, name: str | None = None) -> Tensors:
    """The trained numbers of an adapter by name: `<layer>.values`, and the tensors of the modules it trains.

    They are the tensors themselves, not copies: a few kilobytes to send, average or store elsewhere.

    Raises:
        ValueError: there is no such adapter.
    """
    name = named_or_active(model, name)
    deltas, tensors, _ = parts_of(model, name)
    return {**{f"{key}.values": delta.values.detach() for key, delta in deltas.items()}, **tensors}


def load_adapter_(
    model: nn.Module, folder: Path | str, name: str = "default", *, check_base: bool = True
) -> nn.Module:
    """Put the adapter of `folder/adapter.safetensors` on a network, and in use.

    A file that is refused changes nothing.

    Args:
        model: the pretrained network, with or without other adapters; changed in place.
        folder: of `save_adapter`.
        name: that the adapter gets.
        check_base: whether the weights under it must be those that it was trained on, bit for bit. False for
            the same network in another dtype.

    Returns:
        the model, which trains this adapter alone, as after `adapt_`.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is for another network or other weights.
        ValueError: an adapter of this name is there.
    """
    refuse_wrapped(model)
    check_name(name)
    refuse_taken(model, name)
    path = Path(folder) / ADAPTER_FILE
    records, tensors, notes = _read(model, path)
    targets = Targets([record.name for record in records] or [""], None, ())
    with targets.expand(model) as expanded:
        own = dict(named_own(expanded.model))
        layers = {record.name: _layer(path, own, record) for record in records}
        saved = saved_by(path, own, tensors, notes["trained"])
        if check_base and (found := checksum_of(layers)) != notes["base"]:
            raise CheckpointError(
                f"{path} was trained on other weights (checksum {shorten(notes['base'])}, here {found}): "
                f"load the pretrained network that it was made for, or pass check_base=False where it is the "
                f"same in another dtype"
            )
        templates = {
            f"{key}.{k}": t for key, (module, _, _) in saved.items() for k, t in own_tensors(module).items()
        }
        tree = _tree(
            {key: plain_like(layer) for key, layer in layers.items()},
            {key: torch.empty_like(templates[key], device="cpu") for key in tensors},
        )
        load_state(tree, path)
        deltas = {key: _delta(tree.get_submodule(key), layer) for key, layer in layers.items()}
        own_memory(expanded, layers.values())
        expanded.close(set(layers.values()))
        model = expanded.model
    place(model, name, layers, deltas, saved, {key: tree.get_buffer(key) for key in tensors})
    return model


@torch.no_grad()
def place(
    model: nn.Module,
    name: str,
    layers: Mapping[str, nn.Module],
    deltas: Mapping[str, DpSLayer],
    saved: Saved,
    tensors: Mapping[str, Tensor],
) -> None:
    """Install an adapter that was read and checked, and fill the tensors that it has beside S."""
    install(model, name, layers, deltas, saved)
    for key, tensor in tensors.items():
        owner, _, attribute = key.rpartition(".")
        own_tensors(saved[owner][0])[attribute].copy_(tensor)


def checksum_of(layers: Mapping[str, nn.Module]) -> str:
    """16 hexadecimal digits over the names, dtypes, shapes and bytes of the weights W_0 of these layers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, layer in sorted(layers.items()):
        weight = base_weight(layer)
        if versions_of(layer) is not None:  # another adapter trains the layer as a whole
            weight = version(layer, BASE).get("weight", weight)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_or_active(model: nn.Module, name: str | None) -> str:
    """The name, by default of the adapter in use; ValueError where none is."""
    name = name if name is not None else active_adapter(model)
    if name is None:
        raise ValueError("no adapter is in use: name one")
    return name


def parts_of(model: nn.Module, name: str) -> tuple[dict[str, DpSLayer], Tensors, list[str]]:
    """Each layer's S, the other tensors that are not the base's, and the modules that train as a whole."""
    deltas: dict[str, DpSLayer] = {}
    for key, (_, adapters) in layers_of(model, name).items():
        delta = adapters[name]
        assert isinstance(delta, DpSLayer)
        deltas[key] = delta
    tensors: Tensors = {}
    trained: list[str] = []
    for key, module in named_own(model):
        versions = versions_of(module)
        if versions is None or name not in versions.trained:
            continue
        base = version(module, BASE)
        if versions.trained[name]:
            trained.append(key)
        for attribute, tensor in version(module, name).items():
            changed = versions.trained[name] or not torch.equal(tensor, base[attribute])
            if changed and not _is_counter(module, attribute):
                tensors[f"{key}.{attribute}"] = tensor
    return deltas, tensors, trained


def _is_counter(module: nn.Module, attribute: str) -> bool:
    """Whether this is a norm's counter of batches, which nothing reads where it has a momentum."""
    return attribute == "num_batches_tracked" and getattr(module, "momentum", None) is not None


def _tree(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with these modules and buffers at their qualified names, and nothing else."""
    root = nn.Module()

    def at(path: str) -> nn.Module:
        module = root
        for part in path.split(".") if path else ():
            if part not in module._modules:
                module._modules[part] = nn.Module()
            found = module._modules[part]
            assert found is not None
            module = found
        return module

    for path, module in modules.items():
        parent, _, last = path.rpartition(".")
        at(parent)._modules[last] = module
    for path, tensor in tensors.items():
        parent, _, last = path.rpartition(".")
        at(parent).register_buffer(last, tensor)
    return root


def _read(model: nn.Module, path: Path) -> tuple[list[manifest.LayerRecord], list[str], dict[str, Any]]:
    """The layers of the file, the names of its other tensors, and what `save_adapter` noted."""
    names = [name for name, _ in named_own(model)]
    limit = _HEADER_BASE + sum(_HEADER_PER_MODULE + _HEADER_PER_LETTER * len(name) for name in names)
    numbers = sum(tensor.numel() for _, m in named_own(model) for tensor in own_tensors(m).values())
    tensors, fields = container.read(path, limit, limit + 16 * numbers)
    try:
        found = manifest.parse(fields)
    except ValueError as error:
        container.refuse_damaged(path, str(error))
    notes = found.user.get("adapter")
    if not isinstance(notes, dict) or not {"base", "trained"} <= set(notes):
        raise CheckpointError(f"{path} is a network and no adapter: load it with dctps.load_pretrained_")
    trained = notes["trained"]
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        container.refuse_damaged(path, f"its trained modules are {shorten(trained)}")
    return found.layers, [name for name in tensors if name not in ("values", "support")], notes


def _layer(path: Path, own: Mapping[str, nn.Module], record: manifest.LayerRecord) -> nn.Module:
    """The layer that a record is for, which it fits."""
    layer = own.get(record.name)
    if layer is None or not can_adapt(layer):
        what = "no such layer" if layer is None else f"a {type(layer).__name__} there"
        raise CheckpointError(
            f"{path} is for another network: it adapts {shorten(record.name)}, and this one has {what}"
        )
    plain = plain_like(layer)
    shape = tuple(plain.weight.shape)
    shape = (*shape[:2], 1, *shape[2:]) if len(shape) == 3 else shape
    theirs = tuple(record.shape), record.groups, record.offset
    if theirs != (shape, ours := getattr(plain, "groups", 1), "zero"):
        raise CheckpointError(
            f"{path} is for another network: layer {shorten(record.name)} has shape {theirs[0]}, groups "
            f"{theirs[1]} and offset {shorten(theirs[2])} in the file, and {shape}, {ours} and 'zero' here"
        )
    return layer


def saved_by(path: Path, own: Mapping[str, nn.Module], tensors: Iterable[str], trained: list[str]) -> Saved:
    """The modules that get a version: those that the file trains or has tensors of, and counting norms."""
    known = {f"{key}.{attribute}" for key, module in own.items() for attribute in own_tensors(module)}
    if wrong := [name for name in tensors if name not in known] + [
        name for name in trained if name not in own
    ]:
        raise CheckpointError(f"{path} is for another network: it has {shorten(wrong[0])}, which is not here")
    owners = {name.rpartition(".")[0] for name in tensors}
    seen: set[int] = set()
    found: Saved = {}
    for key, module in own.items():
        own_ones = own_tensors(module)
        keys = [attribute for attribute, tensor in own_ones.items() if id(tensor) not in seen]
        seen.update(map(id, own_ones.values()))
        counts = isinstance(module, _NormBase) and module.running_mean is not None
        if keys and (key in owners or key in trained or counts):
            found[key] = (module, keys, key in trained)
    return found


def _delta(delta: nn.Module, layer: nn.Module) -> DpSLayer:
    """S as it was loaded, on the layer's device, as an adapter of it."""
    assert isinstance(delta, DpSLayer)
    values = delta.values.detach().clone()
    delta = as_delta(delta)
    with torch.no_grad():
        delta.values.copy_(values)
    return delta.to(layer.get_parameter("weight").device)
