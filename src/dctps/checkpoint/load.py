"""From a file to a model: everything is read, checked and made before the model is touched."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dctps.checkpoint import container, manifest
from dctps.checkpoint.container import CheckpointError, shorten
from dctps.checkpoint.manifest import LayerRecord, Manifest
from dctps.checkpoint.save import FILE, max_header
from dctps.checkpoint.state import STATISTICS, Slot, State, cast, folded_names, state_of
from dctps.networks.conversion import DPS_CLASS, convert
from dctps.networks.replaced import trained, watch_optimizers
from dctps.networks.surgery import named_modules, refuse_wrapped, replace_
from dctps.networks.survey import Expanded
from dctps.nn import DpSLayer
from dctps.offsets import ZeroOffset

_MAX_BYTES_PER_NUMBER = 16  # a value of 8 bytes and its position, generously


def load_pretrained_(
    model: nn.Module, folder: Path | str, *, device: torch.device | str | None = None
) -> nn.Module:
    """Fill `model` from `folder/model.safetensors`; a refused file leaves it exactly as it was.

    Plain layers that the file holds as DpS layers are converted as by `sparsify_`, whatever their
    weights; no dense weight is made, so the model may be built under `torch.device("meta")`. Layers
    converted already must agree in shape, offset, seed of the offset, and nnz; their supports are then
    the file's. Floating-point numbers take the dtype of the model, all others must have it.

    Args:
        model: with the layers of the one that was saved; changed in place.
        folder: of `save_pretrained`.
        device: where tensors on the meta device are made; by default the CPU.

    Returns:
        the model; a root that is itself converted comes back replaced.

    Raises:
        CheckpointError: there is no such file, it is damaged, of another architecture, or only for
            inference while the model is in training mode.
        ValueError: the model holds something that no file can fill; with its name.
    """
    return _load(model, Path(folder) / FILE, device)[0]


def load_state(model: nn.Module, path: Path | str) -> dict[str, Any]:
    """Fill `model` from a file of `save_state`, and return its metadata.

    Arguments and errors are those of `load_pretrained_`; `model` is no single plain layer, which would have
    to be replaced.
    """
    loaded, metadata = _load(model, Path(path), None)
    if loaded is not model:
        raise CheckpointError(f"{path} holds a single DpS layer: load it with load_pretrained_")
    return metadata


class _MismatchError(ValueError):
    """The file is sound, and of another model."""


Device = torch.device | str | None
_Expected = dict[str, tuple[torch.dtype, tuple[int, ...] | None]]
# Tensors that are ready for their owners: of the right shape and dtype.
_Placements = list[tuple[Slot, Tensor]]


def _load(model: nn.Module, path: Path, device: Device) -> tuple[nn.Module, dict[str, Any]]:
    _refuse_unfillable(model)
    before = trained(model)
    limit = max_header(state_of(model))
    with Expanded(model, lambda *_: True) as expanded:
        loaded, metadata = _load_expanded(expanded, limit, path, device)
    watch_optimizers(before, loaded, "load_pretrained_")
    return loaded, metadata


def _load_expanded(
    expanded: Expanded, limit: int, path: Path, device: Device
) -> tuple[nn.Module, dict[str, Any]]:
    whole = state_of(expanded.model)
    numbers = sum(slot.tensor.numel() for slot in whole.slots.values())
    numbers += sum(math.prod(layer.last_map.shape) for layer in whole.layers.values())
    limit = max(limit, max_header(whole))
    tensors, fields = container.read(path, limit, limit + _MAX_BYTES_PER_NUMBER * numbers)
    try:
        notes = manifest.parse(fields)
        modules = dict(named_modules(expanded.model))
        expanded.close({modules[record.name] for record in notes.layers if record.name in modules})
        model = expanded.model
        modules = dict(named_modules(model))
        shared = {id(slot.tensor) for slot in whole.slots.values() if len(slot.owners) > 1}
        targets = {record.name: _target(modules, shared, record) for record in notes.layers}
        if left := set(whole.layers) - set(targets):
            raise _MismatchError(f"layer {min(left)!r} is dense in the file and a DpS layer in the model")
        if notes.projections != whole.projections:
            theirs, ours = shorten(notes.projections), shorten(whole.projections)
            raise _MismatchError(f"the hyperplanes are {theirs} in the file and {ours} in the model")
        weights = [t.get_parameter("weight") for t in targets.values() if not isinstance(t, DpSLayer)]
        state = state_of(model, notes.norms, weights)
        _compare(_expected(state, notes), tensors)
        # Only now are counts and sizes known to be the model's, and worth work.
        supports = manifest.read_supports(notes, tensors.get("support"))
        replacements, placements = _layers(targets, notes, supports, tensors, device)
        placements += _placements(state, tensors)
    except _MismatchError as error:
        raise CheckpointError(f"{path} is of another architecture: {error}") from None
    except ValueError as error:
        container.refuse_damaged(path, str(error))
    if replacements:
        refuse_wrapped(model)
    if notes.inference_only and model.training:
        reason = f"{notes.norms} norms, which only inference can use"
        raise CheckpointError(f"{path} holds {reason}: call model.eval() first")
    # From here on nothing is refused.
    with torch.no_grad():
        for slot, tensor in placements:
            _place(slot, tensor, replacements, device)
        for record in notes.layers:
            layer: Any = replacements.get(targets[record.name], targets[record.name])
            layer.seed, layer._given_support = record.seed, record.rice is not None
            layer.seal()
    return replace_(model, replacements), notes.user


def _refuse_unfillable(model: nn.Module) -> None:
    for name, module in named_modules(model):
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers[key]
            if buffer is not None and buffer.is_meta:
                what = f"the buffer {key!r} of module {name!r}"
                raise ValueError(f"{what} is on the meta device and in no file: build the model for real")


def _target(modules: Mapping[str, nn.Module], shared: Collection[int], record: LayerRecord) -> nn.Module:
    """The module of the model that a record describes."""
    name = shorten(record.name)
    module: Any = modules.get(record.name)
    if module is None:
        raise _MismatchError(f"the model has no layer {name}")
    if isinstance(module, DpSLayer):
        found: dict[str, Any] = {**module.last_map.spec, "nnz": module.nnz}
        given: dict[str, Any] = {**record.build_offset().spec, "nnz": record.nnz}
    elif type(module) in DPS_CLASS and "weight" in module._parameters:
        shape = DPS_CLASS[type(module)].offset_shape(module)
        found = {"shape": list(shape), "groups": getattr(module, "groups", 1)}
        given = {"shape": list(record.shape), "groups": record.groups}
        if id(module.weight) in shared:
            raise _MismatchError(f"the weight of layer {name} is shared in the model and not in the file")
    else:
        kind = type(module).__name__
        raise _MismatchError(f"layer {name} is a {kind} in the model, which cannot be converted")
    for key, value in found.items():
        if given[key] != value:
            theirs, ours = shorten(given[key]), shorten(value)
            raise _MismatchError(f"layer {name} has {key} {theirs} in the file and {ours} in the model")
    return module  # type: ignore[no-any-return]


def _expected(state: State, notes: Manifest) -> _Expected:
    """Dtype and shape of each tensor of the file; no shape where the content decides."""
    expected: _Expected = {
        name: (slot.tensor.dtype, tuple(slot.tensor.shape)) for name, slot in state.slots.items()
    }
    for name, norm in state.folded.items():
        for path in folded_names(name):
            expected[path] = (torch.float32, tuple(norm.get_parameter("weight").shape))
    if notes.layers:
        expected["values"] = (torch.float32, (sum(record.nnz for record in notes.layers),))
    if alphas := sum(_has_alpha(record) for record in notes.layers):
        expected["alpha"] = (torch.float32, (alphas,))
    if any(record.rice is not None for record in notes.layers):
        expected["support"] = (torch.uint8, None)
    return expected


def _compare(expected: _Expected, tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "the model and not in the file" if name in expected else "the file and not in the model"
            raise _MismatchError(f"the tensor {shorten(name)} is in {where}")
        (dtype, shape), tensor = expected[name], tensors[name]
        if shape is not None and tuple(tensor.shape) != shape:
            theirs = tuple(tensor.shape)
            raise _MismatchError(
                f"{shorten(name)} has the shape {theirs} in the file and {shape} in the model"
            )
        if dtype != tensor.dtype and not (dtype.is_floating_point and tensor.is_floating_point()):
            raise _MismatchError(f"{shorten(name)} is {tensor.dtype} in the file and {dtype} in the model")


def _has_alpha(record: LayerRecord) -> bool:
    return not isinstance(record.build_offset(), ZeroOffset)


def _layers(
    targets: Mapping[str, nn.Module],
    notes: Manifest,
    supports: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    device: Device,
) -> tuple[dict[nn.Module, nn.Module], _Placements]:
    """New layers for plain ones, and what is to be placed in these and in converted ones."""
    replacements: dict[nn.Module, nn.Module] = {}
    placements: _Placements = []
    values = iter(tensors["values"].split([record.nnz for record in notes.layers]) if notes.layers else ())
    alphas = iter(tensors["alpha"].split(1) if "alpha" in tensors else ())
    for record in notes.layers:
        target: Any = targets[record.name]
        parts = {"support": supports[record.name], "values": next(values)}
        if _has_alpha(record):
            parts["alpha"] = next(alphas)
        if isinstance(target, DpSLayer):
            layer = target
        else:
            offset = record.build_offset()
            layer = convert(
                target,
                offset=offset.name,
                support=parts["support"],
                alpha=0.0,
                alpha_trainable=record.alpha_trainable,
                seed=offset.seed,
                name=offset.layer,
                device=(device or "cpu") if target.weight.is_meta else None,
            )
            replacements[target] = layer
        for key, part in parts.items():
            old = getattr(layer, key)
            placements.append((Slot(old, [(layer, key)]), cast(record.name, part, old.dtype)))
    return replacements, placements


def _placements(state: State, tensors: Mapping[str, Tensor]) -> _Placements:
    """What is to be placed beside S and alpha."""
    placements = [(slot, cast(name, tensors[name], slot.tensor.dtype)) for name, slot in state.slots.items()]
    for name, norm in state.folded.items():
        scale, shift = (tensors[path] for path in folded_names(name))
        # With this variance the norm divides by sqrt(1 - eps + eps).
        variance = torch.full_like(scale, 1 - norm.eps, dtype=torch.float64)
        parts = (scale, shift, torch.zeros_like(shift), variance)
        for key, part in zip(STATISTICS, parts, strict=True):
            old = getattr(norm, key)
            placements.append((Slot(old, [(norm, key)]), cast(name, part, old.dtype)))
    unmade = [slot for slot in state.dropped if slot.tensor.is_meta]
    return placements + [(slot, torch.zeros_like(slot.tensor, device="cpu")) for slot in unmade]


def _place(slot: Slot, tensor: Tensor, replacements: Mapping[nn.Module, nn.Module], device: Device) -> None:
    made: Tensor | None = None
    for owner, key in slot.owners:
        home = replacements.get(owner, owner)
        old = getattr(home, key)
        if not old.is_meta:
            old.copy_(tensor)
            continue
        if made is None:  # one tensor for all its owners
            made = torch.empty_like(tensor, device=device or "cpu").copy_(tensor)
            if isinstance(old, nn.Parameter):
                made = nn.Parameter(made, old.requires_grad)
        setattr(home, key, made)
