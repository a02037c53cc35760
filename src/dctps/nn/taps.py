"""A dense convolution as one matrix product for each tap of the kernel, on the pixels that the tap meets.

    y[p] = sum_t  W_t x[p * stride + t * dilation - padding]

On images of a few pixels most taps fall into the padding, which torch's kernel multiplies all the same: for
3 x 3 on 2 x 2 pixels five of nine do.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dctps.nn.maps import Conv2d

_LEAST_PADDING = 0.5  # of all products of a tap and a pixel
_LEAST_CHANNELS = 64  # below which the products are too small to be worth their calls

Axis = tuple[
    tuple[int, slice, slice], ...
]  # the taps that meet pixels: which, of what outputs, of what inputs


def is_by_taps(x: Tensor, shape: tuple[int, ...], op: Conv2d) -> bool:
    """Whether it is the faster way for a W of a shape: fixed by shapes, and by x's channels being last."""
    if op.groups > 1 or min(shape[:2]) < _LEAST_CHANNELS or not is_last(x):
        return False
    met = 1.0
    for axis in (0, 1):
        taps = shape[2 + axis]
        pixels = _outputs(x.shape[2 + axis], taps, op, axis)
        met *= sum(out.stop - out.start for _, out, _ in _axis(x, shape, op, axis)) / max(1, taps * pixels)
    return met <= 1 - _LEAST_PADDING


def conv_by_taps(x: Tensor, weight: Tensor, op: Conv2d) -> Tensor:
    """The convolution of x, channels last, with W, channels last."""
    batch, m = x.shape[0], weight.shape[0]
    rows, columns = (_outputs(x.shape[2 + axis], weight.shape[2 + axis], op, axis) for axis in (0, 1))
    pixels, y = x.permute(0, 2, 3, 1), x.new_zeros(batch, rows, columns, m)
    for i, to_row, from_row in _axis(x, weight.shape, op, 0):
        for j, to_column, from_column in _axis(x, weight.shape, op, 1):
            read = pixels[:, from_row, from_column].reshape(-1, x.shape[1])
            written = y[:, to_row, to_column]
            written += (read @ weight[:, :, i, j].T).view(written.shape)
    return y.permute(0, 3, 1, 2)


def conv_by_taps_backward(
    g: Tensor, x: Tensor, weight: Tensor, op: Conv2d, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `conv_by_taps` in x and W, those that are needed."""
    m, channels = weight.shape[:2]
    pixels, by_y = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1)
    by_x = torch.zeros_like(pixels) if need_x else None
    by_weight = torch.zeros_like(weight) if need_weight else None
    for i, to_row, from_row in _axis(x, weight.shape, op, 0):
        for j, to_column, from_column in _axis(x, weight.shape, op, 1):
            above = by_y[:, to_row, to_column].reshape(-1, m)
            if by_x is not None:
                read = by_x[:, from_row, from_column]
                read += (above @ weight[:, :, i, j]).view(read.shape)
            if by_weight is not None:
                below = pixels[:, from_row, from_column].reshape(-1, channels)
                torch.mm(above.T, below, out=by_weight[:, :, i, j])
    return None if by_x is None else by_x.permute(0, 3, 1, 2), by_weight


def is_last(x: Tensor) -> bool:
    """Whether the channels of a pixel follow each other in memory, and its pixels do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _axis(x: Tensor, shape: tuple[int, ...], op: Conv2d, axis: int) -> Axis:
    window = op.stride[axis], op.padding[axis], op.dilation[axis]
    return _meetings(x.shape[2 + axis], shape[2 + axis], *window)


@functools.lru_cache(maxsize=1024)
def _meetings(size: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    """The taps that meet pixels of an axis of `size`."""
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    found = []
    for tap in range(taps):
        shift = tap * dilation - padding  # output o reads pixel o * stride + shift
        first = max(0, -(shift // stride))
        past = min(outputs, (size - 1 - shift) // stride + 1)
        if first < past:
            start = first * stride + shift
            found.append(
                (tap, slice(first, past), slice(start, start + (past - first - 1) * stride + 1, stride))
            )
    return tuple(found)


def _outputs(size: int, taps: int, op: Conv2d, axis: int) -> int:
    return (size + 2 * op.padding[axis] - op.dilation[axis] * (taps - 1) - 1) // op.stride[axis] + 1
