"""Depthwise convolutions, channels last, by native code, which reads x and g once for both derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.kernels import Window, depthwise_backward, depthwise_forward
from dctps.nn.maps import Conv2d
from dctps.nn.native import single
from dctps.nn.taps import is_last


def is_by_channels(x: Tensor, op: Conv2d, outputs: int) -> bool:
    """Whether it is so done: fixed by shapes, dtype, and x being in channels-last order."""
    if not op.groups == outputs == x.shape[1] > 1:
        return False
    return x.dtype == torch.float32 and is_last(x) and x.numel() > 0


def conv_by_channels(x: Tensor, weight: Tensor, op: Conv2d, bias: Tensor | None) -> Tensor:
    """The convolution of x with W, plus b; where taps are many or far apart by torch, then the faster."""
    if max(weight.shape[2:]) > 3 or max(op.stride) > 2 or max(op.dilation) > 1:
        return op.apply(x, weight, bias)
    return depthwise_forward(x, weight, _window(weight, op), single(bias))


def conv_by_channels_backward(
    g: Tensor, x: Tensor, weight: Tensor, op: Conv2d, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `conv_by_channels` in x and W, those that are needed."""
    window = _window(weight, op)
    return depthwise_backward(single(g), x, weight, window, needs_x=need_x, needs_weight=need_weight)


def _window(weight: Tensor, op: Conv2d) -> Window:
    return Window(tuple(weight.shape), op.stride, op.padding, op.dilation, op.groups)
