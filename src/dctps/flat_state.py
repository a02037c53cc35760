"""What a network trains as a few flat tensors of floats, to send and to average, and back into a network.

The rest of a converted network follows from its class and from what `sparsify_` was given (density, offset,
allocation, seed): whoever has these needs the trained numbers alone. The mean of two such states is the state
of the mean network, because W = alpha * D + S is linear in alpha and in S's values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dctps.dynamic import change_support_
from dctps.networks.norms import NORM_LAYERS
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer
from dctps.reporting import trained_by_kind
from dctps.sparse import check_support


@torch.no_grad()
def trainable_state(
    model: nn.Module, statistics: bool = False, *, supports: bool = False
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

    Returns:
        kind -> (numbers of this kind,), on the CPU, kinds as in `Report.trainable`, none that is empty; in
        the order of the network's modules, a shared parameter once, what is frozen left out. float32, in
        which bfloat16 and float16 are exact; float64 for a kind with float64 parameters.

    Raises:
        ValueError: a parameter is lazy, on the meta device or complex, or, with `supports`, two layers share
            their values.
    """
    state = {kind: _joined(tensors) for kind, tensors in _slots(model, statistics).items()}
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
    supports = check_trainable_state(model, state)
    for layer, support in zip(_moving(model) if supports else [], supports, strict=True):
        there, here = support.to(layer.support.device), layer.support
        change_support_(layer, here[~torch.isin(here, there)], there[~torch.isin(there, here)])
    for kind, tensors in _slots(model, "statistics" in state).items():
        for tensor, part in zip(tensors, state[kind].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
    return model


def check_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> list[Tensor]:
    """Refuse a state that `load_trainable_state_` cannot put into this network, with one line.

    Args:
        model: made as the network that the state should be of.
        state: whatever came.

    Returns:
        the supports that it brings, int64, one for each layer; none if it brings none.

    Raises:
        ValueError: a kind is missing or unknown, or has another count or dtype than here, or numbers that are
            not finite in the parameters' dtype; or its supports are not those of such layers.
    """
    slots = _slots(model, "statistics" in state)
    moving = {"support", "nnz"} & state.keys()
    expected = slots.keys() | ({"support", "nnz"} if moving else set())
    if missing := sorted(expected - state.keys()):
        raise ValueError(f"the state lacks {missing[0]!r}: it is of another network")
    if unknown := sorted(state.keys() - expected):
        raise ValueError(f"the state has {unknown[0]!r}, which this network does not train")
    supports = _supports(model, state) if moving else []
    for kind, tensors in slots.items():
        found, count = state[kind], sum(t.numel() for t in tensors)
        if moving and kind == "values":
            count = sum(map(len, supports))
        _check(kind, found, (count,), _dtype(tensors))
        for dtype in {t.dtype for t in tensors}:
            bad = ~found.to(dtype).isfinite()
            if bool(bad.any()):
                at = int(bad.nonzero()[0])
                raise ValueError(f"{kind!r} holds {float(found[at])} at {at}, which no {dtype} weight can be")
    return supports


def _slots(model: nn.Module, statistics: bool) -> dict[str, list[Tensor]]:
    """The tensors that a state has the numbers of, by kind."""
    slots: dict[str, list[Tensor]] = {}
    for kind, parameters in trained_by_kind(model).items():
        slots[kind] = list(parameters)
    norms = [module for _, module in named_modules(model) if isinstance(module, NORM_LAYERS)]
    buffers = {id(b): b for norm in norms for b in norm.buffers() if b.is_floating_point()}
    if statistics and buffers:
        slots["statistics"] = list(buffers.values())
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or parameter.is_complex():
            what = "lazy" if is_lazy(parameter) else "on the meta device" if parameter.is_meta else "complex"
            raise ValueError(f"parameter {name!r} is {what}: a flat state has real numbers only")
    return slots


def _joined(tensors: list[Tensor]) -> Tensor:
    dtype = _dtype(tensors)
    return torch.cat([tensor.detach().to("cpu", dtype).flatten() for tensor in tensors])


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


def _supports(model: nn.Module, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The supports of a state, one for each layer, checked."""
    layers, counts, support = _moving(model), state["nnz"], state["support"]
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
