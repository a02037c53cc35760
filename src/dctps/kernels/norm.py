"""The native kernels of batch normalisation with the addition and activation behind it (`csrc/norm/`)."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from dctps.kernels.boundary import (
    CPU,
    SERIAL,
    address,
    check_shape,
    own,
    raise_failure,
    start_of,
    strided,
    threads_for,
)
from dctps.kernels.layouts import NORM
from dctps.kernels.loader import function

_SERIAL = SERIAL


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
    x = _images(x, "x")
    channels = x.shape[1]
    count = x.numel() // max(channels, 1)
    if (count < 2) if training else None in running:
        raise ValueError(f"no statistics of {tuple(x.shape)} in {'training' if training else 'evaluation'}")
    if any(t is not None and not t.is_contiguous() for t in running):
        raise ValueError("statistics that run have to be contiguous, to move on in place")
    table = torch.empty(4, channels, dtype=torch.float32, device=CPU)
    numbers = {"training": training, "momentum": momentum, "epsilon": epsilon}
    vectors = {"weight": weight, "bias": bias, "running_mean": running[0], "running_var": running[1]}
    _call("norm_statistics", x, table, NO_BOUNDS, numbers, vectors, {})
    return table


def norm_forward(x: Tensor, table: Tensor, bounds: Bounds = NO_BOUNDS, residual: Tensor | None = None) -> Tensor:
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
    x = _images(x, "x")
    y = torch.empty_like(x)
    if y.numel():
        _call("norm_forward", x, table, bounds, {}, {}, {"residual": residual, "y": y})
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
    x = _images(x, "x")
    in_x, in_weight, in_bias, in_residual = needs
    bounded = bounds.lower == bounds.lower or bounds.upper == bounds.upper
    grad_x = torch.empty_like(x) if in_x else None
    # Without bounds the residual's gradient is g itself.
    grad_residual = torch.empty_like(x) if in_residual and bounded else None
    vectors = {
        name: torch.empty(x.shape[1], dtype=torch.float32, device=CPU) if needed else None
        for name, needed in (("grad_weight", in_weight), ("grad_bias", in_bias))
    }
    if x.numel():
        images = {"g": g, "y": y if bounded else None, "grad_x": grad_x, "grad_residual": grad_residual}
        _call("norm_backward", x, table, bounds, {"training": training}, vectors, images)
    else:
        for t in vectors.values():
            if t is not None:
                t.zero_()
    return grad_x, *vectors.values(), grad_residual if bounded or not in_residual else g


def _call(
    name: str,
    x: Tensor,
    table: Tensor,
    bounds: Bounds,
    numbers: dict[str, float],
    vectors: dict[str, Tensor | None],
    images: dict[str, Tensor | None],
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    kept: list[Tensor] = []
    channels = x.shape[1]
    pixels = x.shape[2] * x.shape[3]
    last = not x.is_contiguous()
    check_shape(table, (4, channels), "the table of statistics")
    fields: dict[str, int] = {what: address(t, channels, what, kept) for what, t in vectors.items()}
    for what, t in images.items():
        if t is None:
            continue
        check_shape(t, tuple(x.shape), what)
        t = strided(t, 4, what).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        kept.append(t)
        fields[what] = start_of(t, what)
    call = NORM.pack(
        x.shape[0],
        channels,
        pixels,
        last or pixels == 1,
        threads_for(x.numel(), _SERIAL),
        numbers.get("training", False),
        *(_bits(f) for f in (numbers.get("epsilon", 0.0), numbers.get("momentum", 0.0), *bounds)),
        start_of(x, "x"),
        *(fields.get(what, 0) for what in ("weight", "bias", "running_mean", "running_var")),
        address(table, 4 * channels, "the table of statistics", kept),
        *(fields.get(what, 0) for what in NORM.names[16:]),
    )
    if failure := function(name)(call):
        raise_failure(failure, f"a normalisation of {tuple(x.shape)}", channels)


def _images(x: Tensor, what: str) -> Tensor:
    """The images, checked, in one of the two orders in memory."""
    x = strided(x, 4, what)
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _bits(number: float) -> int:
    """A double as the field of a call that holds it."""
    return int(struct.unpack("q", struct.pack("d", number))[0])
