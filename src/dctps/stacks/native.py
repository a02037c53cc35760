"""Stacked networks by the native kernel: which it takes, and how their tensors are laid out for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from dctps.kernels import variant
from dctps.kernels.layouts import MOST_OPERATIONS, Kind
from dctps.kernels.stack import LayerTensors, Operation, StackKernel
from dctps.stacks.chain import Geometry, Link, index_of, offset_of
from dctps.subspace import Hyperplane


@dataclass(frozen=True)
class Losses:
    """What each of R networks made of a batch.

    Attributes:
        loss: cross-entropy in nats summed over the images, (R,), float64.
        correct: images classified correctly, (R,), int64.
    """

    loss: Tensor
    correct: Tensor


def operations_of(links: Sequence[Link], image: tuple[int, int, int]) -> list[Operation] | None:
    """The chain as the kernel knows it, for images of (channels, rows, columns); None if it does not."""
    operations: list[Operation] = []
    read = image
    for link in links:
        module, before = link.module, operations[-1].kind if operations else None
        if link.kind == "flatten":
            read = (read[0] * read[1] * read[2], 1, 1)
        elif link.geometry is not None:
            shape = link.geometry.shape
            if link.geometry != Geometry(shape, link.geometry.bias):
                return None
            window = shape[2:] if len(shape) == 4 else (1, 1)
            written = (shape[0], read[1] - window[0] + 1, read[2] - window[1] + 1)
            operations.append(Operation(Kind.WEIGHTED, read, written, (window[0], window[1])))
            read = written
        elif type(module) is nn.ReLU and before == Kind.WEIGHTED:
            operations.append(Operation(Kind.RELU, read, read))
        elif type(module) is nn.AvgPool2d and before is not None and (pool := _window(module)):
            written = (read[0], read[1] // pool[0], read[2] // pool[1])
            operations.append(Operation(Kind.POOL, read, written, pool))
            read = written
        else:
            return None
    fits = len(operations) <= MOST_OPERATIONS and read[1:] == (1, 1)
    return operations if fits else None


class NativeStack:
    """The networks of a stack, on the CPU in float32, laid out for the kernel."""

    def __init__(
        self, models: Sequence[nn.Module], chains: Sequence[Sequence[Link]], operations: Sequence[Operation]
    ) -> None:
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._planes: list[tuple[Hyperplane, Tensor, Tensor, Tensor]] = []
        self._offsets: list[Tensor] = []
        networks = []
        for model, chain in zip(models, chains, strict=True):
            own = self._moved(model) if isinstance(model, Hyperplane) else {}
            networks.append([self._layer(link, own) for link in chain if link.kind == "weighted"])
        self._kernel = StackKernel(operations, networks)

    @torch.no_grad()
    def move(self) -> None:
        """Make theta_0 + P v of the hyperplanes again: before the networks are called, once v has changed."""
        for plane, start, moved, _ in self._planes:
            torch.add(start, plane.projection.apply(plane.theta_d), out=moved)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, *, backward: bool) -> Losses:
        """The losses on a batch, and where asked the gradients of their means, as the parameters' `.grad`."""
        losses = Losses(*self._kernel(images, labels, backward=backward))
        if backward:
            for plane, _, _, gradient in self._planes:
                plane.theta_d.grad = plane.projection.adjoint(gradient)
            for parameter, gradient in self._gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient
        return losses

    def _layer(self, link: Link, own: dict[nn.Parameter, tuple[Tensor, Tensor]]) -> LayerTensors:
        module, offset = link.module, offset_of(link.module)
        parameters = dict(module.named_parameters())
        named = {name: self._place(parameter, own) for name, parameter in parameters.items()}
        values, grad_values = named.get("values") or named["weight"]
        alpha, grad_alpha = named.get("alpha", (None, None))
        bias, grad_bias = named.get("bias", (None, None))
        support = module.get_buffer("support") if "values" in named else None
        dense = None
        if offset is not None:  # one tensor for all layers with the same D
            dense = self._offsets[index_of(offset.to_dense().flatten().contiguous(), self._offsets)]
        return LayerTensors(values, support, alpha, dense, bias, grad_values, grad_alpha, grad_bias)

    def _place(
        self, parameter: nn.Parameter, own: dict[nn.Parameter, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        """A parameter's numbers and where their gradient goes."""
        if parameter in own:
            return own[parameter]
        if not parameter.requires_grad:
            return parameter.detach(), None
        gradient = torch.zeros_like(parameter)
        self._gradients.append((parameter, gradient))
        return parameter.detach(), gradient

    def _moved(self, plane: Hyperplane) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
        """For each parameter of the network: its part of theta_0 + P v, and where its gradient goes."""
        parameters = [plane.network.get_parameter(name) for name in plane.moved]
        start = torch.cat([parameter.detach().flatten() for parameter in parameters])
        moved, gradient = torch.empty_like(start), torch.zeros_like(start)
        self._planes.append((plane, start, moved, gradient))
        sizes = [parameter.numel() for parameter in parameters]
        pairs = zip(moved.split(sizes), gradient.split(sizes), strict=True)
        return dict(zip(parameters, pairs, strict=True))


def is_native(models: Sequence[nn.Module]) -> bool:
    """Whether the kernel is compiled and takes these networks' tensors."""
    return variant() != "off" and all(
        p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous()
        for model in models
        for p in model.parameters()
    )


def _window(pool: nn.AvgPool2d) -> tuple[int, int] | None:
    """Of a pool whose windows lie side by side; None for others."""
    size, stride, padding = (tuple(_pair(v)) for v in (pool.kernel_size, pool.stride, pool.padding))
    plain = size == stride and padding == (0, 0) and not pool.ceil_mode and pool.divisor_override is None
    return (size[0], size[1]) if plain else None
