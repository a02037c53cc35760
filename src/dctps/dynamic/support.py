"""A layer's support changes: its values, and everything that an optimizer knows of them, move along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps.counter import derive_key, sample
from dctps.nn import DpSLayer


@torch.no_grad()
def change_support_(
    layer: DpSLayer, dropped: Tensor, grown: Tensor, optimizer: Optimizer | None = None
) -> None:
    """Drop some positions from a layer's support, and grow others.

    Values, their gradient and every slot of the optimizer with their shape (momentum, Adam's moments, ...)
    keep their number at each position that stays; a grown one starts at 0 with slots of 0. The support stays
    sorted. With as many grown as dropped all tensors are changed in place; else values, support and
    slots become new tensors, and `layer.values` stays the same `Parameter`.

    Args:
        layer: any DpS layer.
        dropped: flat positions in the support.
        grown: flat positions outside what is left of it.
        optimizer: that trains the layer's values, if one does.

    Raises:
        ValueError: positions that are not there to drop or to grow, or an optimizer that keeps numbers for
            the values in a form of its own. Nothing has then been changed.
    """
    slots = {} if optimizer is None else _slots(layer, optimizer)
    stays = torch.isin(layer.support, dropped, invert=True)
    support, order = torch.cat([layer.support[stays], grown]).sort()
    _check(layer, len(layer.support) - int(stays.sum()), dropped, support)

    def moved(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[stays], tensor.new_zeros(len(grown))])[order]

    values, gradient = layer.values, layer.values.grad
    if len(dropped) == len(grown):
        for tensor in (values, gradient, *slots.values()):
            if tensor is not None:
                tensor.copy_(moved(tensor))
        layer.support.copy_(support)
        layer.seal()
        return
    new = moved(values.detach())
    if optimizer is not None:
        optimizer.state[values].update({name: moved(slot) for name, slot in slots.items()})
    _resize_(layer, new, support)
    values.grad = None if gradient is None else moved(gradient)


def take_sizes_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Make room in each DpS layer for the nnz that it has in a state dict, so that this can be loaded.

    Args:
        model: with DpS layers; changed in place.
        state: a state dict of it, after `DSR` has moved weights between its layers.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, DpSLayer):
            continue
        found = state.get(f"{name}.values" if name else "values")
        size = math.prod(layer.offset.shape)
        if isinstance(found, Tensor) and found.dim() == 1 and len(found) <= size and len(found) != layer.nnz:
            support = torch.arange(len(found), device=layer.support.device)
            _resize_(layer, layer.values.detach().new_zeros(len(found)), support)


def free_count(layer: DpSLayer) -> int:
    """How many positions of a layer are outside its support."""
    return math.prod(layer.offset.shape) - layer.nnz


def free_positions(layer: DpSLayer, count: int, purpose: str, *, seed: int) -> Tensor:
    """`count` positions outside a layer's support, sorted; their key is (seed, layer, purpose). In O(nnz)."""
    support = layer.support
    key = derive_key(seed, layer.offset.layer, purpose)
    ranks = sample(key, count, free_count(layer), device=support.device)
    # Before the j-th position of the support there are support[j] - j free ones.
    before = support - torch.arange(len(support), device=support.device)
    return ranks + torch.searchsorted(before, ranks, right=True)


def smallest(values: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` smallest |values|; of equal ones the earlier are kept."""
    order = values.detach().abs().sort(descending=True, stable=True).indices
    return order[len(order) - count :].sort().values


def _slots(layer: DpSLayer, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of the optimizer's state with a number for each value."""
    slots: dict[str, Tensor] = {}
    for name, slot in optimizer.state.get(layer.values, {}).items():
        if isinstance(slot, Tensor) and slot.shape == layer.values.shape:
            slots[name] = slot
        elif (isinstance(slot, Tensor) and slot.dim()) or isinstance(slot, list | tuple | dict):
            raise ValueError(
                f"layer {layer.offset.layer!r}: {type(optimizer).__name__} keeps {name!r} in a form that "
                f"cannot follow a change of support: use an optimizer with a number per weight, such as Adam"
            )
    return slots


def _check(layer: DpSLayer, found: int, dropped: Tensor, support: Tensor) -> None:
    size = math.prod(layer.offset.shape)
    if found != len(dropped):
        problem = f"{len(dropped)} positions to drop, of which {found} are in the support"
    elif bool((support.diff() == 0).any()):
        problem = f"position {int(support[:-1][support.diff() == 0][0])} is to grow and in the support"
    elif len(support) and not 0 <= int(support[0]) <= int(support[-1]) < size:
        problem = f"positions to grow must be in 0..{size - 1}"
    else:
        return
    raise ValueError(f"layer {layer.offset.layer!r}: {problem}")


def _resize_(layer: DpSLayer, values: Tensor, support: Tensor) -> None:
    # A graph that is still alive holds on to the old shape through the parameter's gradient accumulator;
    # torch makes a new one where the dtype has changed, and not where the shape has.
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    if not layer.nnz and len(values):  # without values it had nothing to train
        layer.values.requires_grad_()
    layer.values.data = values.to(other)
    layer.values.data = values
    layer.values.grad = None
    layer.support = support
    layer.seal()
