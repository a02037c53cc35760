"""Sparse adapters of one dense layer: y = W_0 x + b + S x, with W_0 left where it is.

They are the layer's child `adapters`: one DpS layer under the zero offset for each S. A forward hook adds the
active one's product to the layer's output, so that no dense S and no sum W_0 + S is ever made. Merging writes
the sum at the nnz positions of S alone and keeps the numbers that stood there, so that unmerging restores W_0
bit for bit, and a change of the adapter costs O(nnz).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dctps.initial import ZEROS
from dctps.nn.conv import DpSConv2d
from dctps.nn.conv1d import DpSConv1d
from dctps.nn.layer import DpSLayer
from dctps.nn.linear import DpSLinear
from dctps.offsets import build_offset

CHILD = "adapters"

# GPT-2's linear layer, which stores its weight as (in, out); by name, so that transformers is not imported.
TRANSPOSED = "transformers.pytorch_utils.Conv1D"

_DELTA: dict[type[nn.Module], type[DpSLayer]] = {
    nn.Linear: DpSLinear,
    nn.Conv1d: DpSConv1d,
    nn.Conv2d: DpSConv2d,
}


class Adapters(nn.ModuleDict):
    """The adapters of one dense layer, by name, at most one of them active.

    Attributes:
        active: name of the one whose S is added; None: the layer computes W_0 x + b.
        merged: name of the one whose S is in the layer's weight, or None.
        kept: the numbers of W_0 at the merged one's support, (nnz,), or None. In no state dict.
    """

    kept: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.active: str | None = None
        self.merged: str | None = None
        self.register_buffer("kept", None, persistent=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.refuse_merged("a state dict would hold W_0 + S as if it were W_0")
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        try:
            self.refuse_merged("a state dict cannot be loaded over W_0 + S")
        except ValueError as error:
            rest[-1].append(str(error))
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def refuse_merged(self, why: str) -> None:
        """Say that an adapter is merged, why that is in the way, and what to do.

        Raises:
            ValueError: so it is.
        """
        if self.merged is not None:
            raise ValueError(
                f"the adapter {self.merged!r} is merged, and {why}: call "
                f"dctps.adapters.unmerge_adapter_(model) first, or dctps.merge_(model) for a plain network "
                f"that keeps the sum"
            )


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is transformers' `Conv1D`, whose weight is (in, out)."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == TRANSPOSED


def can_adapt(layer: nn.Module) -> bool:
    """Whether the layer's class is one that can have adapters; of plain layers exactly, not of subclasses."""
    return type(layer) in _DELTA or is_transposed(layer)


def adapters_of(layer: nn.Module) -> Adapters | None:
    """The layer's adapters, if it has some."""
    found = layer._modules.get(CHILD)
    return found if isinstance(found, Adapters) else None


def plain_like(layer: nn.Module) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """A layer on the meta device, without bias, of the class and shape that S of this layer has."""
    dtype = layer.get_parameter("weight").dtype
    if is_transposed(layer):
        inputs, outputs = layer.get_parameter("weight").shape
        return nn.Linear(inputs, outputs, bias=False, device="meta", dtype=dtype)
    arguments = _DELTA[type(layer)]._arguments_of(layer)
    return type(layer)(**{**arguments, "bias": False}, device="meta", dtype=dtype)  # type: ignore[return-value]


def build_delta(
    layer: nn.Module, name: str, *, nnz: int | None = None, support: Tensor | None = None, seed: int = 0
) -> DpSLayer:
    """S = 0 for a dense layer, on its device and of its dtype.

    Args:
        layer: that S is for.
        name: its qualified name, which keys the draws together with the seed.
        nnz: number of the values, at positions drawn from the seed; or
        support: their mask or flat positions, in the layout of the layer's own weight.
        seed: of the support.
    """
    plain = plain_like(layer)
    kind = _DELTA[type(plain)]
    weight = layer.get_parameter("weight")
    groups = getattr(plain, "groups", 1)
    delta = kind(
        **kind._arguments_of(plain),
        offset=build_offset("zero", kind.offset_shape(plain), groups=groups, seed=seed, layer=name),
        nnz=nnz,
        support=None if support is None else _in_delta(layer, support),
        seed=seed,
        device=weight.device,
        dtype=weight.dtype,
    )
    return as_delta(delta)


@torch.no_grad()
def as_delta(layer: DpSLayer) -> DpSLayer:
    """The layer as an S that starts at zero, whatever resets it."""
    layer.weight_law = ZEROS
    layer.values.zero_()
    return layer


def attach(layer: nn.Module, name: str, delta: DpSLayer) -> None:
    """Give a layer one more adapter, which is not active yet."""
    adapters = adapters_of(layer)
    if adapters is None:
        adapters = Adapters()
        layer.add_module(CHILD, adapters)
        # Before other hooks, which are to see the whole output.
        layer.register_forward_hook(_add_active, prepend=True, with_kwargs=True)
    adapters[name] = delta
    delta.train(layer.training)


def detach(layer: nn.Module, name: str) -> None:
    """Take an adapter away; with the last one the layer is again as it was before the first."""
    adapters = adapters_of(layer)
    assert adapters is not None
    if adapters.merged == name:
        unmerge(layer)
    if adapters.active == name:
        adapters.active = None
    del adapters[name]
    if not len(adapters):
        del layer._modules[CHILD]
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add_active]:
            for hooks in (layer._forward_hooks, layer._forward_hooks_with_kwargs):
                hooks.pop(key, None)


def absorb(layer: nn.Module) -> None:
    """Leave W_0 + S of the active adapter in the layer for good, and take all adapters away."""
    adapters = adapters_of(layer)
    assert adapters is not None
    merge(layer)
    adapters.merged = adapters.kept = None
    for name in list(adapters):
        detach(layer, name)


def _add_active(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
    """The hook: y + S x, or None for y as it is. It looks the adapter up: a copy of the layer has its own."""
    adapters = layer._modules[CHILD]
    active = adapters.active  # type: ignore[union-attr]
    if active is None or adapters.merged is not None:  # type: ignore[union-attr]
        return None
    delta: Tensor = adapters[active](args[0] if args else next(iter(kwargs.values())))  # type: ignore[index]
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or y.dtype != delta.dtype:
        return y + delta
    # Neither sum needs its terms for the gradient, so one of them becomes it. Not a view, whose gradient
    # autograd would copy.
    if not torch.is_grad_enabled() or not y._is_view():
        return y.add_(delta)
    return y + delta if delta._is_view() else delta.add_(y)


@torch.no_grad()
def merge(layer: nn.Module) -> None:
    """Write W_0 + S of the active adapter into the layer's weight, in O(nnz); nothing where it is there."""
    adapters = adapters_of(layer)
    assert adapters is not None
    if adapters.merged == adapters.active:
        return
    unmerge(layer)
    if adapters.active is not None:
        delta, weight = adapters[adapters.active], layer.get_parameter("weight")
        assert isinstance(delta, DpSLayer)
        where = positions(layer, delta)
        adapters.kept = weight[where]
        weight[where] = adapters.kept + delta.values.to(weight.dtype)
        adapters.merged = adapters.active


@torch.no_grad()
def unmerge(layer: nn.Module) -> None:
    """Put the numbers of W_0 back, bit for bit, in O(nnz); nothing where none is merged."""
    adapters = adapters_of(layer)
    assert adapters is not None
    if adapters.merged is not None:
        delta = adapters[adapters.merged]
        assert isinstance(delta, DpSLayer)
        assert adapters.kept is not None
        layer.get_parameter("weight")[positions(layer, delta)] = adapters.kept
        adapters.merged = adapters.kept = None


@torch.no_grad()
def base_weight(layer: nn.Module) -> Tensor:
    """W_0 of a layer: its weight itself, or a copy with the old numbers where an adapter is merged."""
    weight, adapters = layer.get_parameter("weight").detach(), adapters_of(layer)
    if adapters is None or adapters.merged is None:
        return weight
    delta = adapters[adapters.merged]
    assert isinstance(delta, DpSLayer) and adapters.kept is not None
    weight = weight.clone()
    weight[positions(layer, delta)] = adapters.kept
    return weight


def positions(layer: nn.Module, delta: DpSLayer) -> tuple[Tensor, ...]:
    """Where S's values stand in the layer's weight, one index (nnz,) for each of its axes.

    Indices, not flat positions, as the weight may lie in memory in any order.
    """
    shape = tuple(layer.get_parameter("weight").shape)
    if is_transposed(layer):
        return torch.unravel_index(delta.support, shape[::-1])[::-1]
    return torch.unravel_index(delta.support, shape)


def _in_delta(layer: nn.Module, support: Tensor) -> Tensor:
    """A mask or flat positions in the layer's weight as the same in S."""
    shape = layer.get_parameter("weight").shape
    if is_transposed(layer):
        if support.dtype == torch.bool and support.shape == shape:
            return support.T
        if support.dtype != torch.bool and support.dim() == 1 and not support.is_floating_point():
            inputs, outputs = shape
            at = support.long()
            inside = (at >= 0) & (at < inputs * outputs)
            return torch.where(inside, at % outputs * inputs + at // outputs, at)
    return support
