"""The native kernel of depthwise convolutions, channels last, and their derivatives (`csrc/depthwise.c`)."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from dctps.kernels.conv import Window, address
from dctps.kernels.loader import function

_LAST = torch.channels_last
_SERIAL = 1 << 15  # numbers below which one thread does it all


def depthwise_forward(x: Tensor, weight: Tensor, window: Window, bias: Tensor | None = None) -> Tensor:
    """Each channel's convolution with its own filter, plus bias.

    Args:
        x: float32 (batch, m, height, width), copied unless channels last.
        weight: float32 (m, 1, kh, kw).
        window: of the kernel, in m groups.
        bias: float32 (m,), or None.

    Returns:
        float32 (batch, m, height', width'), channels last.
    """
    x = x.contiguous(memory_format=_LAST)
    y = torch.empty(window.outputs(x), memory_format=_LAST)
    if y.numel():
        _call("depthwise_forward", x, y, weight, window, bias)
    return y


def depthwise_backward(
    g: Tensor, x: Tensor, weight: Tensor, window: Window, *, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `depthwise_forward` in x and weight, those that are needed; its other arguments.

    Args:
        g: float32, the result's gradient, copied unless channels last.
        x: as for `depthwise_forward`, and so are `weight` and `window`.
        weight: see `x`.
        window: see `x`.
        needs_x: whether x's is.
        needs_weight: whether the weight's is.

    Returns:
        x's, channels last; the weight's: float32, or None where not needed.
    """
    g, x = g.contiguous(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    by_x = torch.empty(x.shape, memory_format=_LAST) if needs_x else None
    by_weight = torch.empty(weight.shape) if needs_weight else None
    if g.numel():
        _call("depthwise_backward", x, g, weight, window, None, by_x, by_weight)
    else:
        for by in (by_x, by_weight):
            if by is not None:
                by.zero_()
    return by_x, by_weight


def _call(
    name: str,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    window: Window,
    bias: Tensor | None,
    by_x: Tensor | None = None,
    by_weight: Tensor | None = None,
) -> None:
    """The arguments in the order of csrc/depthwise.c, and the call, during which all tensors are alive."""
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    packed = array(
        "q",
        (
            *x.shape,
            *y.shape[2:],
            *window.shape[2:],
            *window.stride,
            *window.padding,
            *window.dilation,
            torch.get_num_threads() if x.numel() + y.numel() > _SERIAL else 1,
            x.data_ptr(),
            weight.data_ptr(),
            address(bias),
            y.data_ptr(),
            address(by_x),
            address(by_weight),
        ),
    )
    if function(name)(packed.buffer_info()[0]):
        raise MemoryError(f"no memory for the scratch of a convolution of {tuple(x.shape)}")
