"""The native kernels of batch normalisation with the addition and activation behind it (`csrc/norm/`)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, raise_failure, start_of, strided, threads_for
from dctps.kernels.layouts import NORM
from dctps.kernels.loader import function

_SERIAL = 1 << 15  # numbers below which one thread does it all


class Bounds(NamedTuple):
    """What an activation lets through: min(max(y, lower), upper); nan is no bound."""

    lower: float = math.nan
    upper: float = math.nan


NO_BOUNDS, RELU, RELU6 = Bounds(), Bounds(0.0), Bounds(0.0, 6.0)


def norm_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
    *,
    training: bool,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """What y is made with: mean, 1 / std, weight / std and bias of each channel.

    Sums are float32 over a few vectors of numbers and float64 beyond; the variance is that about the mean.

    Args:
        x: float32 (batch, channels, rows, columns), in training of two numbers for each channel or more.
        weight: float32 (channels,), or None for 1.
        bias: float32 (channels,), or None for 0.
        running: mean and variance that run, float32 (channels,), or None; in training they move on, in place.
        training: whether the batch's statistics are taken, or those that run.
        momentum: the batch's share in those that run.
        epsilon: is added to the variance.

    Returns:
        float32 (4, channels).

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: sizes that do not agree, or no statistics.
    """
    x = _images(x)
    channels = x.shape[1]
    mean, variance = running
    if (x.numel() < 2 * channels) if training else (mean is None or variance is None):
        raise ValueError(f"no statistics of {tuple(x.shape)} in {'training' if training else 'evaluation'}")
    kept: list[Tensor] = []
    addresses = (
        _vector(weight, channels, "the weight", kept),
        _vector(bias, channels, "the bias", kept),
        _vector(mean, channels, "the running mean", kept),
        _vector(variance, channels, "the running variance", kept),
    )
    if any(t is not None and not t.is_contiguous() for t in running):
        raise ValueError("statistics that run have to be contiguous, to move on in place")
    table = torch.empty(4, channels, dtype=torch.float32, device=CPU)
    if channels:
        at = (*addresses, table.data_ptr(), 0, 0, 0, 0, 0, 0, 0)
        _call("norm_statistics", x, training, (epsilon, momentum, *NO_BOUNDS), at)
    return table


def norm_forward(
    x: Tensor, table: Tensor, bounds: Bounds = NO_BOUNDS, residual: Tensor | None = None
) -> Tensor:
    """y = clamp((x - mean) * weight / std + bias + residual).

    Args:
        x: as for `norm_statistics`.
        table: of `norm_statistics`.
        bounds: of the activation.
        residual: float32 like x, copied unless in x's order in memory; or None.

    Returns:
        float32 like x, in x's order in memory.

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: sizes that do not agree.
    """
    x = _images(x)
    kept: list[Tensor] = []
    y = torch.empty_like(x)
    if y.numel():
        added = 0 if residual is None else _like(residual, x, "the residual", kept)
        at = (0, 0, 0, 0, _table(table, x, kept), added, y.data_ptr(), 0, 0, 0, 0, 0)
        _call("norm_forward", x, False, (0.0, 0.0, *bounds), at)
    return y


def norm_backward(
    g: Tensor,
    x: Tensor,
    table: Tensor,
    bounds: Bounds = NO_BOUNDS,
    y: Tensor | None = None,
    *,
    training: bool,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The derivatives of `norm_forward`, and of the statistics in training.

    Args:
        g: the result's gradient, float32 like x, copied unless in x's order in memory.
        x: as for `norm_forward`, and so are `table` and `bounds`.
        table: see `x`.
        bounds: see `x`.
        y: the result; None: the bounds are looked for in (x - mean) * weight / std + bias, without residual.
        training: whether the statistics are the batch's.
        needs: whether those in x, weight, bias and residual are needed.

    Returns:
        The derivatives in x, weight, bias and residual: float32, None where not needed.

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: sizes that do not agree.
    """
    x = _images(x)
    kept: list[Tensor] = []
    in_x, in_weight, in_bias, in_residual = needs
    lower, upper = bounds
    bounded = not (math.isnan(lower) and math.isnan(upper))
    grad_x = torch.empty_like(x) if in_x else None
    # Without bounds the residual's gradient is g itself.
    grad_residual = torch.empty_like(x) if in_residual and bounded else None
    grad_weight, grad_bias = (
        torch.zeros(x.shape[1], dtype=torch.float32, device=CPU) if needed else None
        for needed in (in_weight, in_bias)
    )
    if x.numel():
        at = (
            *(0, 0, 0, 0, _table(table, x, kept), 0),
            _like(y, x, "y", kept) if bounded and y is not None else 0,
            _like(g, x, "the gradient of y", kept),
            *(
                0 if grad is None else grad.data_ptr()
                for grad in (grad_x, grad_weight, grad_bias, grad_residual)
            ),
        )
        _call("norm_backward", x, training, (0.0, 0.0, lower, upper), at)
    return grad_x, grad_weight, grad_bias, grad_residual if bounded or not in_residual else g


def _call(
    name: str, x: Tensor, training: bool, numbers: tuple[float, ...], addresses: tuple[int, ...]
) -> None:
    """The call, of images that are checked."""
    batch, channels, rows, columns = x.shape
    pixels, last = rows * columns, not x.is_contiguous()
    shape = batch, channels, pixels, last or pixels == 1
    threads = threads_for(x.numel(), _SERIAL)
    call = NORM.pack(*shape, threads, training, *numbers, start_of(x, "x"), *addresses)
    if failure := function(name)(call):
        raise_failure(failure, f"a normalisation of {tuple(x.shape)}", channels)


def _images(x: Tensor) -> Tensor:
    """x, checked, in one of the two orders in memory."""
    x = strided(x, 4, "x")
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _like(t: Tensor, x: Tensor, what: str, kept: list[Tensor]) -> int:
    """Where the numbers lie of images like x, in x's order in memory."""
    _check_shape(t, tuple(x.shape), what)
    t = strided(t, 4, what)
    if t.stride() != x.stride():
        order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        t = t.contiguous(memory_format=order)
        kept.append(t)
    return start_of(t, what)


def _vector(t: Tensor | None, channels: int, what: str, kept: list[Tensor]) -> int:
    if t is not None:
        _check_shape(t, (channels,), what)
    return address(t, channels, what, kept)


def _table(table: Tensor, x: Tensor, kept: list[Tensor]) -> int:
    _check_shape(table, (4, x.shape[1]), "the table of statistics")
    return address(table, table.numel(), "the table of statistics", kept)


def _check_shape(t: Tensor, shape: tuple[int, ...], what: str) -> None:
    if t.shape != shape:
        raise ValueError(f"{what} has the shape {tuple(t.shape)}, not {shape}")
