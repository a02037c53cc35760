"""Many small networks as one batched model: the losses and gradients of all on one shared batch.

Network r of R has its own weights W_r = alpha_r D_r + S_r (or theta_0 + P v), and all see the same images:

    loss_r = cross-entropy(network_r(images), labels),    d loss_r / d (everything of r that trains)

No network's loss depends on another's parameters, so that each may have its own optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.offsets import Offset
from dctps.stacks.chain import Geometry, Link, NotAChain, chain_of, index_of, offset_of
from dctps.stacks.native import Losses, NativeStack, is_native, operations_of
from dctps.subspace import Hyperplane
from dctps.training.loop import Metrics, Tally

_Made = tuple[Tensor, Tensor | None]  # weights and biases of one layer in all networks
_EVALUATED = 128  # images at a time, whose activations stay in a cache


class Stack:
    """R networks of one architecture, run on the same images.

    Their parameters stay their own: `step` reads them and fills their `.grad`.

    Args:
        models: converted, dense or on a hyperplane, all of one architecture, device and dtype; with offsets,
            supports, densities and dimensions of their own.

    Raises:
        NotAChain: a network has something else than convolutions, linear layers, activations, pools and
            flattening, one after the other; or two differ in more than what may.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        chains = [chain_of(model) for model in models]
        for chain in chains[1:]:
            for link, other in zip(chains[0], chain, strict=False):
                if link.signature != other.signature:
                    raise NotAChain(
                        f"layer {link.name!r} is {link.module} in one network and {other.module} in another: "
                        f"stack networks of one architecture"
                    )
            if len(chain) != len(chains[0]):
                raise NotAChain("one network has more layers than another: stack those of one architecture")
        for model in models:  # as native code reads them
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.models = list(models)
        self._links, self._chains = chains[0], chains
        self._layers = _lay_out(self._links)
        self.lay_out()

    def lay_out(self) -> None:
        """Take up the parameters and supports of the models, again after a support has changed."""
        self._by_shape: dict[tuple[int, int, int], NativeStack | None] = {}
        self.__dict__.pop("_weights", None)

    @cached_property
    def _weights(self) -> _Weights:
        return _Weights(self.models, self._chains, self._layers)

    def step(self, images: Tensor, labels: Tensor) -> Losses:
        """Losses of all networks on a batch, and the gradient of each one's mean loss in its parameters.

        Args:
            images: (B, channels, height, width), of the models' dtype.
            labels: int64 (B,).

        Returns:
            the losses; `.grad` of every parameter that trains is replaced.
        """
        if (native := self._native(images)) is not None:
            native.move()
            return native(images, labels, backward=True)
        for parameter in self._weights.trained:
            parameter.grad = None
        losses = self._losses(images, labels, self._weights.made())
        (losses[0].sum() / len(labels)).backward()
        return Losses(losses[0].detach().double(), losses[1])

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Metrics]:
        """The mean loss and the accuracy of each network over `batches`, of which each is as for `step`.

        Raises:
            TrainingError: there are no images.
        """
        tallies = [Tally() for _ in self.models]
        moved: set[NativeStack] = set()
        weights: list[_Made] = []
        for images, labels in batches:
            if (native := self._native(images)) is not None:
                if native not in moved:
                    native.move()
                    moved.add(native)
                parts = zip(images.split(_EVALUATED), labels.split(_EVALUATED), strict=True)
                losses = [native(*part, backward=False) for part in parts]
            else:
                weights = weights or self._weights.made()
                losses = [Losses(*self._losses(images, labels, weights))]
            loss, correct = (sum(found) for found in zip(*((x.loss, x.correct) for x in losses), strict=True))
            for tally, one, right in zip(tallies, loss.tolist(), correct.tolist(), strict=True):
                tally.add(one, right, len(labels))
        return [tally.metrics() for tally in tallies]

    def _native(self, images: Tensor) -> NativeStack | None:
        """The networks laid out for the native kernel, if it takes them and the images."""
        shape = cast(tuple[int, int, int], tuple(images.shape[1:]))
        if shape not in self._by_shape:
            operations = operations_of(self._links, shape) if is_native(self.models) else None
            self._by_shape[shape] = (
                NativeStack(self.models, self._chains, operations) if operations is not None else None
            )
        return self._by_shape[shape]

    def _losses(self, images: Tensor, labels: Tensor, weights: list[_Made]) -> tuple[Tensor, Tensor]:
        logits = self._forward(images, weights)
        repeated = labels.unsqueeze(1).expand(-1, logits.shape[1])
        loss = F.cross_entropy(logits.transpose(1, 2), repeated, reduction="none")
        return loss.sum(0), (logits.argmax(2) == repeated).sum(0)

    def _forward(self, x: Tensor, weights: list[_Made]) -> Tensor:
        """Logits (B, R, classes)."""
        count = len(self.models)
        layers = iter(zip(self._layers, weights, strict=True))
        shared = True  # until the first weighted layer, x is the same for all networks
        for link in self._links:
            if link.kind == "flatten":
                x = x.flatten(1) if shared else x.reshape(len(x), count, -1)
            elif link.kind == "map":
                x = link.module(x)
            else:
                layer, (weight, bias) = next(layers)
                apply = _linear if len(layer.geometry.shape) == 2 else _convolved
                x = apply(x, weight, bias, layer.geometry, shared)
                shared = False
        return x


class _Layer(NamedTuple):
    """Where a weighted layer's numbers stand in a network's row of `_Weights`."""

    geometry: Geometry
    weight: slice
    bias: slice
    alpha: int


def _lay_out(links: list[Link]) -> list[_Layer]:
    layers, start = [], 0
    for link in links:
        if link.geometry is not None:
            shape = link.geometry.shape
            bias = start + math.prod(shape)
            alpha = bias + shape[0]
            layers.append(_Layer(link.geometry, slice(start, bias), slice(bias, alpha), alpha))
            start = alpha + 1
    return layers


class _Weights:
    """The weights, biases and alphas of all networks as rows (R, width), made from their parameters."""

    def __init__(self, models: list[nn.Module], chains: list[list[Link]], layers: list[_Layer]) -> None:
        some = next(models[0].parameters())
        self._layers, self._width = layers, layers[-1].alpha + 1
        self._base = torch.zeros(len(models), self._width, dtype=some.dtype, device=some.device)
        self._parameters: list[nn.Parameter] = []
        self._projected: list[tuple[int, Hyperplane, Tensor]] = []
        indices: list[Tensor] = []
        for r, (model, chain) in enumerate(zip(models, chains, strict=True)):
            weighted = [link for link in chain if link.kind == "weighted"]
            columns: dict[nn.Parameter, Tensor] = {}
            for layer, link in zip(layers, weighted, strict=True):
                columns |= _columns(layer, link, some.device)
            for parameter, of_it in columns.items():
                if parameter.requires_grad:
                    self._parameters.append(parameter)
                    indices.append(of_it + r * self._width)
                else:  # also theta_0 of a hyperplane
                    self._base[r, of_it] = parameter.detach().flatten()
            if isinstance(model, Hyperplane):
                moved = [model.network.get_parameter(name) for name in model.moved]
                self._projected.append((r, model, torch.cat([columns[p] for p in moved])))
        self._indices = torch.cat(indices) if indices else None
        self._offsets = [
            _offsets([offset_of(chain[i].module) for chain in chains], some)
            for i, link in enumerate(chains[0])
            if link.kind == "weighted"
        ]

    @property
    def trained(self) -> list[nn.Parameter]:
        """All parameters that train."""
        return self._parameters + [plane.theta_d for _, plane, _ in self._projected]

    def made(self) -> list[_Made]:
        """For each layer the weights (R, *shape) and the biases (R, out), differentiable."""
        rows = self._base
        if self._indices is not None:
            numbers = torch.cat([parameter.flatten() for parameter in self._parameters])
            rows = rows.flatten().index_copy(0, self._indices, numbers).view_as(rows)
        if self._projected:
            moved = [
                self._base[r].index_add(0, columns, plane.projection(plane.theta_d).to(rows.dtype))
                for r, plane, columns in self._projected
            ]
            index = torch.tensor([r for r, _, _ in self._projected], device=rows.device)
            rows = rows.index_copy(0, index, torch.stack(moved))
        made: list[_Made] = []
        for layer, offsets in zip(self._layers, self._offsets, strict=True):
            weight = rows[:, layer.weight]
            if offsets is not None:
                which, dense = offsets
                weight = weight + rows[:, layer.alpha, None] * dense[which]
            bias = rows[:, layer.bias] if layer.geometry.bias else None
            made.append((weight.unflatten(1, layer.geometry.shape), bias))
        return made


def _columns(layer: _Layer, link: Link, device: torch.device) -> dict[nn.Parameter, Tensor]:
    """Where in a row each of the layer's parameters goes."""
    columns: dict[nn.Parameter, Tensor] = {}
    for name, parameter in link.module.named_parameters():
        start = {"bias": layer.bias.start, "alpha": layer.alpha}.get(name, layer.weight.start)
        within = torch.arange(parameter.numel(), device=device)
        columns[parameter] = start + (link.module.get_buffer("support") if name == "values" else within)
    return columns


def _offsets(offsets: list[Offset | None], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """The index of each network's D among the distinct ones, and these, flat; None where there is no D."""
    if not any(offsets):
        return None
    distinct: list[Tensor] = []
    which = [
        -1 if offset is None
        else index_of(offset.to_dense(dtype=like.dtype, device=like.device).flatten(), distinct)
        for offset in offsets
    ]  # fmt: skip
    distinct.append(torch.zeros_like(distinct[0]))  # of networks without an offset
    return torch.tensor(which, device=like.device), torch.stack(distinct)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, shared: bool) -> Tensor:
    """(B, R, out) of (B, R, in), or of (B, in) where it is shared."""
    if shared:
        y: Tensor = F.linear(x, weight.flatten(0, 1)).unflatten(1, weight.shape[:2])
    else:
        y = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    return y if bias is None else y + bias


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, shared: bool) -> Tensor:
    """(B, R * out, ...) of (B, R * in, ...), or of (B, in, ...) where it is shared."""
    left, right, top, bottom = geometry.edges
    padding = (top, left)
    if (left, top) != (right, bottom):
        x, padding = F.pad(x, geometry.edges), (0, 0)
    groups = geometry.groups
    if shared and groups > 1:
        x = x.repeat(1, len(weight), 1, 1)  # groups of one network lie side by side
    groups = 1 if shared and groups == 1 else groups * len(weight)
    flat_bias = None if bias is None else bias.flatten()
    return F.conv2d(x, weight.flatten(0, 1), flat_bias, geometry.stride, padding, geometry.dilation, groups)
