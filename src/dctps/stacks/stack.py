"""Many small networks as one batched model: the losses and gradients of all on one shared batch.

Network r of R has its own weights W_r = alpha_r D_r + S_r (or theta_0 + P v), and all see the same images:

    loss_r = cross-entropy(network_r(images), labels),    d loss_r / d (everything of r that trains)

No network's loss depends on another's parameters, so that each may have its own optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.offsets import Offset
from dctps.stacks.chain import Geometry, Link, NotAChain, chain_of, offset_of
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
        first = [link.signature for link in chains[0]]
        for chain in chains[1:]:
            for link, other in zip(chains[0], chain, strict=False):
                if link.signature != other.signature:
                    raise NotAChain(
                        f"layer {link.name!r} is {link.module} in one network and {other.module} in another: "
                        f"stack networks of one architecture"
                    )
            if len(chain) != len(first):
                raise NotAChain("one network has more layers than another: stack those of one architecture")
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
        shared = True  # all networks still see the same
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


@dataclass(frozen=True)
class _Layer:
    """Where a weighted layer's numbers stand in a network's row of `_Weights`."""

    name: str
    geometry: Geometry
    weight: int
    bias: int
    alpha: int

    @property
    def size(self) -> int:
        return torch.Size(self.geometry.shape).numel()


def _lay_out(links: list[Link]) -> list[_Layer]:
    layers, at = [], 0
    for link in links:
        if link.geometry is not None:
            size, outputs = torch.Size(link.geometry.shape).numel(), link.geometry.shape[0]
            layers.append(_Layer(link.name, link.geometry, at, at + size, at + size + outputs))
            at += size + outputs + 1
    return layers


class _Weights:
    """The weights, biases and alphas of all networks as rows (R, width), made from their parameters."""

    def __init__(self, models: list[nn.Module], chains: list[list[Link]], layers: list[_Layer]) -> None:
        some = next(models[0].parameters())
        self._layers, self._width = layers, layers[-1].alpha + 1
        self._base = torch.zeros(len(models), self._width, dtype=some.dtype, device=some.device)
        self._parameters: list[nn.Parameter] = []
        self._projected: list[tuple[int, Hyperplane, Tensor]] = []
        where: list[Tensor] = []
        for r, (model, chain) in enumerate(zip(models, chains, strict=True)):
            weighted = [link for link in chain if link.kind == "weighted"]
            places: dict[nn.Parameter, Tensor] = {}
            for layer, link in zip(layers, weighted, strict=True):
                places |= _places(layer, link, some.device)
            if isinstance(model, Hyperplane):
                for parameter, place in places.items():
                    self._base[r, place] = parameter.detach().flatten()
                moved = [model.network.get_parameter(name) for name in model.moved]
                self._projected.append((r, model, torch.cat([places[p] for p in moved])))
                continue
            for parameter, place in places.items():
                if parameter.requires_grad:
                    self._parameters.append(parameter)
                    where.append(place + r * self._width)
                else:
                    self._base[r, place] = parameter.detach().flatten()
        self._where = torch.cat(where) if where else torch.empty(0, dtype=torch.int64, device=some.device)
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
        if self._parameters:
            numbers = torch.cat([parameter.flatten() for parameter in self._parameters])
            rows = rows.flatten().index_copy(0, self._where, numbers).view_as(rows)
        if self._projected:
            moved = [
                self._base[r].index_add(0, place, plane.projection(plane.theta_d).to(rows.dtype))
                for r, plane, place in self._projected
            ]
            index = torch.tensor([r for r, _, _ in self._projected], device=rows.device)
            rows = rows.index_copy(0, index, torch.stack(moved))
        made: list[_Made] = []
        for layer, offsets in zip(self._layers, self._offsets, strict=True):
            weight = rows[:, layer.weight : layer.bias]
            if offsets is not None:
                which, dense = offsets
                weight = weight + rows[:, layer.alpha, None] * dense[which]
            bias = rows[:, layer.bias : layer.alpha] if layer.geometry.bias else None
            made.append((weight.unflatten(1, layer.geometry.shape), bias))
        return made


def _places(layer: _Layer, link: Link, device: torch.device) -> dict[nn.Parameter, Tensor]:
    """Where in a row each of the layer's parameters goes."""
    module, places = link.module, dict[nn.Parameter, Tensor]()
    for name, parameter in module.named_parameters():
        start = {"bias": layer.bias, "alpha": layer.alpha}.get(name, layer.weight)
        within = (
            module.get_buffer("support")
            if name == "values"
            else torch.arange(parameter.numel(), device=device)
        )
        places[parameter] = start + within
    return places


def _offsets(offsets: list[Offset | None], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Each network's place among the distinct D, and those, flat; None where no network has one."""
    if not any(offsets):
        return None
    distinct: list[Tensor] = []
    which = []
    for offset in offsets:
        dense = None if offset is None else offset.to_dense(dtype=like.dtype, device=like.device).flatten()
        # Compared as numbers: the paper's D has a seed in its spec and none in its entries.
        found = [i for i, other in enumerate(distinct) if dense is not None and torch.equal(dense, other)]
        if dense is not None and not found:
            distinct.append(dense)
        which.append(-1 if dense is None else found[0] if found else len(distinct) - 1)
    distinct.append(torch.zeros_like(distinct[0]))  # of those without
    return torch.tensor(which, device=like.device), torch.stack(distinct)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, shared: bool) -> Tensor:
    """(B, R, out) of (B, R, in), or of (B, in) where it is shared."""
    y = F.linear(x, weight.flatten(0, 1)).unflatten(1, weight.shape[:2]) if shared else _each(x, weight)
    return y if bias is None else y + bias


def _each(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, shared: bool) -> Tensor:
    """(B, R * out, ...) of (B, R * in, ...), or of (B, in, ...) where it is shared."""
    left, right, top, bottom = geometry.edges
    padding = (top, left)
    if (left, top) != (right, bottom):
        x, padding = F.pad(x, geometry.edges), (0, 0)
    groups = geometry.groups
    kernel = weight.flatten(0, 1)
    if shared and groups > 1:
        x = x.repeat(1, len(weight), 1, 1)  # groups of one network lie side by side
    return F.conv2d(
        x,
        kernel,
        None if bias is None else bias.flatten(),
        geometry.stride,
        padding,
        geometry.dilation,
        groups if shared and groups == 1 else groups * len(weight),
    )
