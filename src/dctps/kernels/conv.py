"""The native kernel of convolutions: y = alpha D x + S x, and its derivatives, on strips (`csrc/conv/`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dctps.kernels.boundary import (
    CPU,
    address,
    new_float32,
    raise_failure,
    readable,
    start_of,
    strided,
    threads_for,
    zero_,
)
from dctps.kernels.filters import Filters, Window, mixing
from dctps.kernels.layouts import CONV
from dctps.kernels.loader import function
from dctps.kernels.plans import dct_indices, dct_twiddles

_CACHE = 260_000  # floats of one thread's strips, to stay in L2
_NO_STRIDES = (0,) * 4
Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, the values and alpha


def conv_forward(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    window: Window,
    bias: Tensor | None = None,
    *,
    cache: int = _CACHE,
) -> Tensor:
    """The convolution of x with alpha D + S, plus bias; channels last where x is.

    x is (batch, channels, height, width), float32 or bfloat16, of any strides, and is not copied; the result
    has its dtype, of sums in float32 that are rounded once. The values are float32
    (nnz,), the support int64 (nnz,): sorted flat positions in S. alpha is float32 (1,), None where there is
    no D; the bias is float32 (m,) or None. `cache` floats of one thread's strips fit a cache; results depend
    on it in their last bits. Another dtype or device is a TypeError; sizes that do not agree, or a support
    that is none, are a ValueError.
    """
    x = strided(x, 4, "x", readable(x))
    y = torch.empty(window.outputs(x), dtype=x.dtype, device=CPU, memory_format=_format(x))
    if y.numel():
        _call("conv_forward", x, y, values, support, alpha, filters, window, cache, bias)
    return y


def conv_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    window: Window,
    needs: Sequence[bool],
    *,
    cache: int = _CACHE,
) -> Grads:
    """The derivatives of `conv_forward` in x, values and alpha, or None where `needs` is False.

    Arguments and errors are those of `conv_forward`; `g` is the gradient of its result, of its dtype and
    of any strides. The derivative in x has the dtype and the layout of x, the others are float32.
    """
    g, x = strided(g, 4, "the gradient of y", readable(x)), strided(x, 4, "x", readable(x))
    window.check(x, g)
    needs_x, needs_values, needs_alpha = needs
    grad_x = None
    if needs_x:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=CPU, memory_format=_format(x))
        if not (g.numel() and window.reads_all()):
            grad_x.zero_()
    grad_values = new_float32(values.shape) if needs_values else None
    grad_alpha = new_float32((1,)) if needs_alpha and alpha is not None else None
    grads = grad_x, grad_values, grad_alpha
    if g.numel():
        _call("conv_backward", x, g, values, support, alpha, filters, window, cache, grads=grads)
    else:
        zero_(*grads[1:])
    return grads


def _call(
    name: str,
    x: Tensor,
    y: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    window: Window,
    cache: int,
    bias: Tensor | None = None,
    grads: Grads = (None, None, None),
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    grad_x, grad_values, grad_alpha = grads
    m, nnz, q = window.shape[0], values.numel(), filters.cosine
    kept: list[Tensor] = []
    mix = mixing(filters, alpha, m, x.shape[1], window.shape[2] * window.shape[3])
    plan = dct_indices(q, torch.int32, CPU) if q else None
    tables = dct_twiddles(q, torch.float32, CPU) if q else None
    call = CONV.pack(
        *x.shape, *y.shape[1:], window.groups,
        *window.shape[2:], *window.stride, *window.padding, *window.dilation,
        *x.stride(), *y.stride(), *(_NO_STRIDES if grad_x is None else grad_x.stride()),
        x.dtype is torch.bfloat16, start_of(x, "x"), address(bias, m, "the bias", kept), start_of(y, "y"),
        0 if grad_x is None else grad_x.data_ptr(), 0 if grad_values is None else grad_values.data_ptr(),
        0 if grad_alpha is None else grad_alpha.data_ptr(),
        nnz, address(support, nnz, "the support", kept, torch.int64),
        address(values, nnz, "the values", kept), address(alpha, 1, "alpha", kept), *mix,
        0 if plan is None else plan.data_ptr(), 0 if tables is None else tables.data_ptr(),
        cache, threads_for(x.numel() + y.numel()),
    )  # fmt: skip
    if failure := function(name)(call):
        raise_failure(failure, f"a convolution of {tuple(x.shape)} by {window}", math.prod(window.shape))


def _format(x: Tensor) -> torch.memory_format:
    """Channels last where x is, as torch's convolutions decide it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
