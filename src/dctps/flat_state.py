"""What a network trains as a few flat tensors of floats, to send and to average, and back into a network.

The rest of a converted network follows from its class and from what `sparsify_` was given (density, offset,
allocation, seed): whoever has these needs the trained numbers alone. The mean of two such states is the state
of the mean network, because W = alpha * D + S is linear in alpha and in S's values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dctps.dynamic import change_support_
from dctps.networks.norms import NORM_LAYERS
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer
from dctps.reporting import trained_by_kind
from dctps.sparse import check_support

_NUMBERS = "numbers"  # all kinds in one
_SUPPORTS = {"support", "nnz"}


@torch.no_grad()
def trainable_state(
    model: nn.Module, statistics: bool = False, *, supports: bool = False, joined: bool = False
) -> dict[str, Tensor]:
    """One flat tensor for each kind of trained number: values, alphas, norms, biases, ...

    Args:
        model: any module, converted or not.
        statistics: add the running means and variances of the norms, as `"statistics"`; never their counters
            of batches, which are no floats and have no mean.
        supports: add where the values stand, for networks whose supports move: `"support"`, flat positions in
            one layer after the other, int32, or int64 for a layer of more than 2^31 weights; and `"nnz"`,
            int64, how many of them are each layer's. These have no mean: see
            `dctps.dynamic.average_over_union`.
        joined: all kinds one after the other as one tensor, `"numbers"`. Flower, for one, adds 134 bytes to
            each tensor that it sends.

    Returns:
        kind -> (numbers of this kind,), on the CPU, kinds as in `Report.trainable`, none that is empty; in
        the order of the network's modules, a shared parameter once, what is frozen left out. float32, in
        which bfloat16 and float16 are exact; float64 for a kind with float64 parameters.

    Raises:
        ValueError: a parameter is lazy, on the meta device or complex, or, with `supports`, two layers share
            their values.
    """
    slots = _slots(model, statistics)
    if joined:
        slots = {_NUMBERS: [tensor for tensors in slots.values() for tensor in tensors]}
    state = {kind: _join(tensors) for kind, tensors in slots.items()}
    if supports:
        layers = _moving(model)
        wide = any(math.prod(layer.last_map.shape) > 2**31 for layer in layers)
        found = [layer.support.cpu().to(torch.int64 if wide else torch.int32) for layer in layers]
        state["support"] = torch.cat(found) if found else torch.zeros(0, dtype=torch.int32)
        state["nnz"] = torch.tensor([layer.nnz for layer in layers], dtype=torch.int64)
    return state


@torch.no_grad()
def load_trainable_state_(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Put the numbers of a `trainable_state` into a network, in place; the inverse, bit for bit.

    Args:
        model: made as the network that the state is of.
        state: with `"statistics"` these are replaced too, with `"support"` and `"nnz"` the supports.

    Returns:
        the model, its parameters the same objects as before.

    Raises:
        ValueError: as `check_trainable_state`; nothing has then been changed.
    """
    numbers, supports = check_trainable_state(model, state)
    for layer, support in zip(_moving(model) if supports else [], supports, strict=True):
        there, here = support.to(layer.support.device), layer.support
        change_support_(layer, here[~torch.isin(here, there)], there[~torch.isin(there, here)])
    for kind, tensors in _slots(model, "statistics" in numbers).items():
        for tensor, part in zip(tensors, numbers[kind].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
    return model


def check_trainable_state(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Refuse a state that `load_trainable_state_` cannot put into this network, with one line.

    Args:
        model: made as the network that the state should be of.
        state: whatever came.

    Returns:
        its numbers by kind, and the supports that it brings, int64 (nnz,), one for each layer whose values
        train; none if it brings none.

    Raises:
        ValueError: a kind is missing or unknown, or has another count or dtype than here, or numbers that are
            not finite in the parameters' dtype; or its supports are not those of such layers.
    """
    given, supports = dict(state), None
    if _SUPPORTS & given.keys():
        if lacking := sorted(_SUPPORTS - given.keys()):
            raise ValueError(f"the state lacks {lacking[0]!r}: positions and their counts go together")
        supports = _supports(model, given.pop("nnz"), given.pop("support"))
    kinds = _kinds(model, "statistics" in given, supports)
    if _NUMBERS in given:
        kinds, parts = _split(model, given.pop(_NUMBERS), supports)
        given.update(parts)
    if missing := sorted(kinds.keys() - given.keys()):
        raise ValueError(f"the state lacks {missing[0]!r}: it is of another network")
    if unknown := sorted(given.keys() - kinds.keys()):
        raise ValueError(f"the state has {unknown[0]!r}, which this network does not train")
    for name, kind in kinds.items():
        found = given[name]
        _check(name, found, (kind.size,), kind.dtype)
        for dtype in kind.holders:
            bad = ~found.to(dtype).isfinite()
            if bool(bad.any()):
                at = int(bad.nonzero()[0])
                raise ValueError(f"{name!r} holds {float(found[at])} at {at}, which no {dtype} number can be")
    return given, supports or []


class _Kind(NamedTuple):
    """What a state must have of one kind."""

    size: int
    dtype: torch.dtype
    holders: set[torch.dtype]  # of the parameters that the numbers go to


def _kinds(model: nn.Module, statistics: bool, supports: list[Tensor] | None) -> dict[str, _Kind]:
    slots = _slots(model, statistics)
    if supports:
        slots["values"] = [layer.values for layer in _moving(model)]
    kinds = {}
    for name, tensors in slots.items():
        moved = name == "values" and supports is not None
        size = sum(t.numel() for t in (supports or [] if moved else tensors))
        if size:
            kinds[name] = _Kind(size, _dtype(tensors), {t.dtype for t in tensors})
    return kinds


def _split(
    model: nn.Module, numbers: Tensor, supports: list[Tensor] | None
) -> tuple[dict[str, _Kind], dict[str, Tensor]]:
    """The kinds of a joined state, with statistics if so many numbers came, and its numbers by kind."""
    kinds, full = (_kinds(model, statistics, supports) for statistics in (False, True))
    if isinstance(numbers, Tensor) and numbers.numel() == sum(kind.size for kind in full.values()):
        kinds = full
    wide = any(kind.dtype == torch.float64 for kind in kinds.values())
    sizes = [kind.size for kind in kinds.values()]
    _check(_NUMBERS, numbers, (sum(sizes),), torch.float64 if wide else torch.float32)
    parts = zip(kinds.items(), numbers.split(sizes), strict=True)
    return kinds, {name: part.to(kind.dtype) for (name, kind), part in parts}


def _slots(model: nn.Module, statistics: bool) -> dict[str, list[Tensor]]:
    """The tensors that a state has the numbers of, by kind."""
    slots: dict[str, list[Tensor]] = {}
    for kind, parameters in trained_by_kind(model).items():
        if filled := [parameter for parameter in parameters if parameter.numel()]:
            slots[kind] = list(filled)
    norms = [module for _, module in named_modules(model) if isinstance(module, NORM_LAYERS)]
    buffers = {id(b): b for norm in norms for b in norm.buffers() if b.is_floating_point()}
    if statistics and buffers:
        slots["statistics"] = list(buffers.values())
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or parameter.is_complex():
            what = "lazy" if is_lazy(parameter) else "on the meta device" if parameter.is_meta else "complex"
            raise ValueError(f"parameter {name!r} is {what}: a flat state has real numbers only")
    return slots


def _join(tensors: list[Tensor]) -> Tensor:
    dtype = _dtype(tensors)
    parts = [tensor.detach().to("cpu", dtype).flatten() for tensor in tensors]
    return torch.cat([torch.zeros(0, dtype=dtype), *parts])


def _dtype(tensors: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _moving(model: nn.Module) -> list[DpSLayer]:
    """The layers whose supports may move: those whose values train, or that have none yet."""
    layers = [module for _, module in named_modules(model) if isinstance(module, DpSLayer)]
    layers = [layer for layer in layers if layer.values.requires_grad or not layer.nnz]
    if len({id(layer.values) for layer in layers}) < len(layers):
        raise ValueError("two layers share their values: the support of one cannot move alone")
    return layers


def _check(kind: str, found: object, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"{kind!r} is a {type(found).__name__}: give a tensor")
    if found.dtype not in dtypes:
        raise ValueError(f"{kind!r} is of {found.dtype}: it must be of {dtypes[0]}")
    if tuple(found.shape) != shape:
        raise ValueError(f"{kind!r} has the shape {tuple(found.shape)}: this network's is {shape}")


def _supports(model: nn.Module, counts: Tensor, support: Tensor) -> list[Tensor]:
    """The supports of a state, one for each layer, checked."""
    layers = _moving(model)
    _check("nnz", counts, (len(layers),), torch.int64)
    if bool((counts < 0).any()):
        raise ValueError(f"'nnz' holds {int(counts.min())}: a layer has 0 values or more")
    _check("support", support, (int(counts.sum()),), torch.int32, torch.int64)
    parts = list(support.cpu().long().split(counts.tolist()))
    for layer, part in zip(layers, parts, strict=True):
        try:
            sorted_part = check_support(part, layer.last_map.shape)
        except ValueError as error:
            raise ValueError(f"'support' of layer {layer.last_map.layer!r}: {error}") from None
        if not torch.equal(sorted_part, part):
            raise ValueError(f"'support' of layer {layer.last_map.layer!r} is not sorted, as its values are")
    return parts
