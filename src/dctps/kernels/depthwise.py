"""The native kernel of depthwise convolutions, channels last, and their derivatives (`csrc/depthwise/`)."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, raise_failure, start_of, strided, threads_for, zero_
from dctps.kernels.filters import Window
from dctps.kernels.layouts import DEPTHWISE
from dctps.kernels.loader import function

_LAST = torch.channels_last
_SERIAL = 1 << 15  # numbers below which one thread does it all


def depthwise_forward(x: Tensor, weight: Tensor, window: Window, bias: Tensor | None = None) -> Tensor:
    """Each channel's convolution with its own filter, plus bias; channels last.

    x is float32 (batch, m, height, width), copied unless channels last; the weight float32 (m, 1, kh, kw),
    its window in m groups; the bias float32 (m,) or None. Errors are those of `conv_forward`.
    """
    x = _images(x, window)
    y = torch.empty(window.outputs(x), dtype=torch.float32, device=CPU, memory_format=_LAST)
    if y.numel():
        _call("depthwise_forward", x, y, weight, window, bias)
    return y


def depthwise_backward(
    g: Tensor, x: Tensor, weight: Tensor, window: Window, *, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `depthwise_forward` in x (channels last) and weight: float32, or None.

    Arguments and errors are those of `depthwise_forward`; `g` is the gradient of its result, float32, copied
    unless channels last.
    """
    x = _images(x, window)
    g = strided(g, 4, "the gradient of y").contiguous(memory_format=_LAST)
    window.check(x, g)
    grad_x = torch.empty_like(x) if needs_x else None
    grad_weight = x.new_empty(weight.shape) if needs_weight else None
    if g.numel():
        _call("depthwise_backward", x, g, weight, window, None, grad_x, grad_weight)
    else:
        zero_(grad_x, grad_weight)
    return grad_x, grad_weight


def _call(
    name: str,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    window: Window,
    bias: Tensor | None,
    grad_x: Tensor | None = None,
    grad_weight: Tensor | None = None,
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    kept: list[Tensor] = []
    if weight.shape != window.shape:
        raise ValueError(f"the weight has the shape {tuple(weight.shape)}, not {window.shape}")
    call = DEPTHWISE.pack(
        *x.shape, *y.shape[2:],
        *window.shape[2:], *window.stride, *window.padding, *window.dilation,
        threads_for(x.numel() + y.numel(), _SERIAL),
        start_of(x, "x"), address(weight, weight.numel(), "the weight", kept),
        address(bias, window.groups, "the bias", kept), start_of(y, "y"),
        0 if grad_x is None else grad_x.data_ptr(), 0 if grad_weight is None else grad_weight.data_ptr(),
    )  # fmt: skip
    if failure := function(name)(call):
        raise_failure(failure, f"a convolution of {tuple(x.shape)} by {window}", weight.numel())


def _images(x: Tensor, window: Window) -> Tensor:
    """X, checked, channels last."""
    x = strided(x, 4, "x")
    if not window.shape[0] == window.groups == x.shape[1]:
        raise ValueError(f"{window} is not depthwise")
    return x.contiguous(memory_format=_LAST)
