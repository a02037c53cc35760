"""The convolution and its first derivatives by native code: on strips, or by a W made for the call."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.kernels import (
    Window,
    conv_backward,
    conv_forward,
    conv_weight,
    conv_weight_backward,
    variant,
)
from dctps.nn.depthwise import conv_by_channels, conv_by_channels_backward, is_by_channels
from dctps.nn.maps import Conv2d
from dctps.nn.native import rounded, single
from dctps.nn.taps import conv_by_taps, conv_by_taps_backward, is_by_taps, is_last
from dctps.nn.torch_paths import Gradients, Needs
from dctps.nn.weight import Weight
from dctps.offsets import Offset


def has_native_conv(offset: Offset) -> bool:
    """Whether the kernel knows D as a convolution."""
    return offset.has_filters and variant() != "off"


def has_native_weight(offset: Offset) -> bool:
    """Whether native code makes the weight."""
    return has_native_conv(offset) and (offset.groups == 1 or offset.shape[1] == 1)


def native_conv(x: Tensor, weight: Weight, op: Conv2d, bias: Tensor | None = None) -> Tensor:
    """The convolution of x with alpha * D + S, plus b."""
    values, alpha, support, offset = weight
    rest = single(values), support, single(alpha), offset.filters(), _window(offset, op), bias
    return rounded(conv_forward(single(x), *rest), x)


def native_conv_backward(g: Tensor, x: Tensor, weight: Weight, op: Conv2d, needs: Needs) -> Gradients:
    """The derivatives of `native_conv` in x, values and alpha, those that are needed."""
    values, alpha, support, offset = weight
    rest = single(values), support, single(alpha), offset.filters(), _window(offset, op), needs
    by_x, by_values, by_alpha = conv_backward(single(g), single(x), *rest)
    return rounded(by_x, x), rounded(by_values, values), rounded(by_alpha, values)


def native_dense_conv(x: Tensor, made: Tensor, op: Conv2d, bias: Tensor | None = None) -> Tensor:
    """The convolution with a W that native code made, plus b."""
    if is_by_channels(x, op, len(made)):
        return conv_by_channels(x, made, op, bias)
    if is_by_taps(x, made.shape, op):
        return op.add(conv_by_taps(x, made, op), bias)
    return op.apply(x, made, bias)


def native_dense_conv_backward(
    g: Tensor, x: Tensor, weight: Weight, op: Conv2d, needs: Needs, made: Tensor | None = None
) -> Gradients:
    """The derivatives of `native_dense_conv` in x, values and alpha, as needed; W is `made`, or made."""
    if made is None and needs[0]:
        made = rounded(native_weight(weight, layout_of(x)), x)
    elif made is None:  # a first layer's images need no gradient, and nothing else reads the numbers in W
        made = torch.empty(weight.offset.shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
    needed = needs[0], needs[1] or needs[2]
    if is_by_channels(x, op, len(made)):
        by_x, by_weight = conv_by_channels_backward(g, x, made, op, *needed)
    elif is_by_taps(x, made.shape, op):
        by_x, by_weight = conv_by_taps_backward(g, x, made, op, *needed)
    else:
        by_x, by_weight = op.backward(g, x, made, *needed)
    if by_weight is None:
        return by_x, None, None
    return by_x, *native_weight_backward(by_weight, weight, *needs[1:])


def native_weight(weight: Weight, layout: torch.memory_format) -> Tensor:
    """alpha * D + S in float32, in a layout."""
    values, alpha, support, offset = weight
    form = offset.weight_filters()
    return conv_weight(single(values), support, single(alpha), form, offset.shape, layout)


def native_weight_backward(
    by_weight: Tensor, weight: Weight, need_values: bool, need_alpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What W's gradient says of values and alpha, those that are needed."""
    values, alpha, support, offset = weight
    by_values, by_alpha = conv_weight_backward(
        single(by_weight),
        single(values),
        support,
        single(alpha),
        offset.weight_filters(),
        needs_values=need_values,
        needs_alpha=need_alpha,
    )
    return rounded(by_values, values), rounded(by_alpha, values)


def layout_of(x: Tensor) -> torch.memory_format:
    """Of the W that the convolution of x wants."""
    return torch.channels_last if is_last(x) else torch.contiguous_format


def _window(offset: Offset, op: Conv2d) -> Window:
    return Window(offset.shape, op.stride, op.padding, op.dilation, op.groups)
