"""The two kinds of map that a layer applies: x W^T on rows, or the convolution of images with W.

A geometry knows sizes, memory layouts, and the product with a dense W and its derivatives. It does not know
how W is made, which is what a path knows (`path.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.kernels import Window
from dctps.offsets import Offset
from dctps.transforms.tables import constant_to_compilers

Triple = tuple[Tensor | None, Tensor | None, Tensor | None]
Axis = tuple[tuple[int, slice, slice], ...]  # taps that meet pixels: which, of what outputs, of what inputs


class RowGeometry:
    """x W^T on a matrix of rows; one object serves all layers: `ROWS`."""

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on rows, so that a transform applies."""
        return True

    def count_rows(self, shape: tuple[int, ...]) -> int:
        """How many rows an input of this shape has."""
        return shape[0]

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """x with the inputs of one row last."""
        return x

    def from_rows(self, y: Tensor) -> Tensor:
        """Undo `to_rows` on the result."""
        return y

    def result(self, rows: Tensor, x: Tensor) -> Tensor:
        """The result for x, from its matrix of rows."""
        return rows

    def grad_input(self, rows: Tensor, x: Tensor) -> Tensor:
        """The gradient of x, from that of the matrix of rows that x gave."""
        return rows

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """y + b."""
        return y if bias is None else y + bias.to(y.dtype)

    def sum_bias(self, g: Tensor) -> Tensor:
        """The gradient of b in y + b."""
        return g.sum(0)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product with W, plus b."""
        return self.add(x @ weight.T, bias)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]) -> Triple:
        """The derivatives of `apply` in x, W and b, where `needs` says so."""
        grad_x = g @ weight if needs[0] else None
        return grad_x, g.T @ x if needs[1] else None, self.sum_bias(g) if needs[2] else None


ROWS = RowGeometry()


@dataclass(frozen=True, slots=True, eq=False)
class ConvGeometry(Window):
    """The convolution of images with a weight of `shape`; `conv_geometry` makes each but once."""

    # Compared and hashed by identity, in C: every call of a layer looks its path up by its geometry.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on pixels, so that a transform applies."""
        return self.shape[2:] == (1, 1) and self.groups == 1 and self.padding == (0, 0)

    def count_rows(self, shape: tuple[int, ...]) -> int:
        """How many pixels the results for images of this shape have, batch included."""
        return shape[0] * math.prod(self.sizes(shape[2:]))

    def count_positions(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Positions of a strip, the zeros between images included, and the phases of the stride."""
        height, width = (-(-size // by) for size, by in zip(shape[2:], self.stride, strict=True))
        phases = min(self.stride[0], self.shape[2]) * min(self.stride[1], self.shape[3])
        return shape[0] * (height + self.padding[0]) * (width + self.padding[1]), phases

    def meetings(self, image: Sequence[int]) -> list[Axis]:
        """For rows and columns of an image: the taps that meet pixels and not the padding alone."""
        axes = zip(
            image, self.sizes(image), self.shape[2:], self.stride, self.padding, self.dilation, strict=True
        )
        return [_meetings(*axis) for axis in axes]

    def share_met(self, image: Sequence[int]) -> float:
        """The share of all products of a tap and an output that meet a pixel."""
        share = 1.0
        for axis, outputs, taps in zip(self.meetings(image), self.sizes(image), self.shape[2:], strict=True):
            share *= sum(to.stop - to.start for _, to, _ in axis) / max(1, taps * outputs)
        return share

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """The pixels that a 1 x 1 kernel visits, channels last."""
        return (x[..., :: self.stride[0], :: self.stride[1]] if strided else x).movedim(1, -1)

    def from_rows(self, y: Tensor) -> Tensor:
        """Channels second again."""
        return y.movedim(-1, 1)

    def result(self, rows: Tensor, x: Tensor) -> Tensor:
        """The result for images x, in their layout, from its matrix of rows."""
        y = self.from_rows(rows.reshape(x.shape[0], *self.sizes(x.shape[2:]), rows.shape[-1]))
        return y if lies_in_rows(x) else y.contiguous()

    def grad_input(self, rows: Tensor, x: Tensor) -> Tensor:
        """The gradient of images x, from that of the matrix of rows that x gave."""
        pixels = self.from_rows(rows.reshape(x.shape[0], *self.sizes(x.shape[2:]), rows.shape[-1]))
        if self.stride == (1, 1):
            return pixels
        grad_x = rows.new_zeros(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
        grad_x[..., :: self.stride[0], :: self.stride[1]] = pixels
        return grad_x

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """y + b."""
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def sum_bias(self, g: Tensor) -> Tensor:
        """The gradient of b in y + b."""
        return g.sum((0, 2, 3))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution with W, plus b, by torch's kernel."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]) -> Triple:
        """The derivatives of `apply` in x, W and b, where `needs` says so."""
        found: Triple = torch.ops.aten.convolution_backward.default(
            g,
            x,
            weight,
            [weight.shape[0]] if needs[2] else None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            needs,
        )
        return found


Geometry = RowGeometry | ConvGeometry


@constant_to_compilers
def conv_geometry(
    shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> ConvGeometry:
    """The geometry of a convolution with a weight of `shape`, (out, in / groups, rows, columns)."""
    return _geometries(shape, stride, padding, dilation, groups)


_geometries = functools.lru_cache(maxsize=4096)(ConvGeometry)


@functools.lru_cache(maxsize=1024)
def _meetings(size: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    found = []
    for tap in range(taps):
        shift = tap * dilation - padding  # output o reads pixel o * stride + shift
        first = max(0, -(shift // stride))
        past = min(outputs, (size - 1 - shift) // stride + 1)
        if first < past:
            start = first * stride + shift
            read = slice(start, start + (past - first - 1) * stride + 1, stride)
            found.append((tap, slice(first, past), read))
    return tuple(found)


def flat(x: Tensor) -> Tensor:
    """x as a matrix of rows; itself where it is one, since a view costs time in each direction."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def lies_in_rows(x: Tensor) -> bool:
    """Whether the channels of a pixel follow each other in memory; inside of `torch.func` no one can say."""
    if torch._C._are_functorch_transforms_active():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether images lie in channels-last order, and not in torch's default order too."""
    return lies_in_rows(x) and not x.is_contiguous()


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory layout of images, which a layer's result and its W share."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
