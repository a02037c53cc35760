"""The native kernel of convolutions: y = alpha D x + S x, and its derivatives, on strips (`csrc/conv/conv.c`)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, check_shape, own, raise_failure, strided, threads_for
from dctps.kernels.filters import Filters
from dctps.kernels.layouts import ConvCall, Mix
from dctps.kernels.loader import function
from dctps.kernels.plans import dct_indices, dct_twiddles, has_plan

_CACHE = 260_000  # floats of one thread's strips, to stay in L2
_NO_STRIDES = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Window:
    """Where a kernel of `shape[2:]` reads: (rows, columns) each, and how the channels are grouped."""

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def reads_all(self) -> bool:
        """Whether every pixel of an image, whatever its size, is read by some tap."""
        axes = zip(self.shape[2:], self.dilation, self.stride, strict=True)
        return all(len({i * by % step for i in range(taps)}) == step for taps, by, step in axes)

    def outputs(self, x: Tensor) -> tuple[int, int, int, int]:
        """The shape of the convolution of x, as torch's own has it."""
        return (x.shape[0], self.shape[0], *self.sizes(x.shape[2:]))

    def sizes(self, image: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the results for images of so many rows and columns."""
        (height, width), (up, side), (down, across) = image, self.padding, self.dilation
        return (
            (height + 2 * up - down * (self.shape[2] - 1) - 1) // self.stride[0] + 1,
            (width + 2 * side - across * (self.shape[3] - 1) - 1) // self.stride[1] + 1,
        )

    def check(self, x: Tensor) -> None:
        """Compare x with the kernel.

        Raises:
            ValueError: x has other channels, or the kernel is none.
        """
        m, channels, *taps = self.shape
        steps = min(*taps, *self.stride, *self.dilation, self.groups, m, channels)
        if x.shape[1] != channels * self.groups or steps < 1 or min(self.padding) < 0 or m % self.groups:
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit {self}")


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
    """The convolution of x with alpha D + S, plus bias.

    Args:
        x: float32 (batch, channels, height, width), of any strides; none are copied.
        values: float32 (nnz,).
        support: int64 (nnz,), sorted flat positions in S.
        alpha: float32 (1,), or None where there is no D.
        filters: D.
        window: of the kernel.
        bias: float32 (m,), or None.
        cache: floats of one thread's strips that fit a cache; results depend on it in their last bits.

    Returns:
        float32 (batch, m, height', width'), channels last where x is.

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: sizes that do not agree, or a support that is none.
    """
    x = strided(x, 4, "x")
    window.check(x)
    y = torch.empty(window.outputs(x), dtype=torch.float32, device=CPU, memory_format=_format(x))
    if y.numel():
        _call("conv_forward", x, y, values, support, alpha, filters, window, cache, bias=bias)
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of `conv_forward` in x, values and alpha, those that are needed; arguments and errors alike.

    Args:
        g: float32, the result's gradient, of any strides.
        x: as for `conv_forward`, and so are all up to `window`.
        values: see `x`.
        support: see `x`.
        alpha: see `x`.
        filters: see `x`.
        window: see `x`.
        needs: whether x's, values' and alpha's are.
        cache: see `x`.

    Returns:
        x's, of its layout; values'; alpha's: float32, or None where not needed.
    """
    g, x = strided(g, 4, "the gradient of y"), strided(x, 4, "x")
    window.check(x)
    check_shape(g, window.outputs(x), "the gradient of y")
    needs_x, needs_values, needs_alpha = needs
    grad_x = None
    if needs_x:
        grad_x = torch.empty(x.shape, dtype=torch.float32, device=CPU, memory_format=_format(x))
        if not (g.numel() and window.reads_all()):
            grad_x.zero_()
    grad_values = x.new_empty(values.shape) if needs_values else None
    grad_alpha = x.new_empty(1) if needs_alpha and alpha is not None else None
    if g.numel():
        grads = {"grad_x": grad_x, "grad_values": grad_values, "grad_alpha": grad_alpha}
        _call("conv_backward", x, g, values, support, alpha, filters, window, cache, **grads)
    else:
        for grad in (grad_values, grad_alpha):
            if grad is not None:
                grad.zero_()
    return grad_x, grad_values, grad_alpha


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
    *,
    bias: Tensor | None = None,
    grad_x: Tensor | None = None,
    grad_values: Tensor | None = None,
    grad_alpha: Tensor | None = None,
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    m, nnz = window.shape[0], values.numel()
    values, support = values.contiguous(), support.contiguous()
    plan = tables = None
    if filters.cosine:
        plan = dct_indices(filters.cosine, torch.int32, CPU)
        tables = dct_twiddles(filters.cosine, torch.float32, CPU)
    call = ConvCall(
        *x.shape,
        *y.shape[1:],
        window.groups,
        *window.shape[2:],
        *window.stride,
        *window.padding,
        *window.dilation,
        *x.stride(),
        *y.stride(),
        *(_NO_STRIDES if grad_x is None else grad_x.stride()),
        x=x.data_ptr(),
        bias=address(bias, m, "the bias"),
        y=y.data_ptr(),
        grad_x=own(grad_x),
        grad_values=own(grad_values),
        grad_alpha=own(grad_alpha),
        nnz=nnz,
        support=address(support, nnz, "the support", torch.int64),
        values=address(values, nnz, "the values"),
        alpha=address(alpha, 1, "alpha"),
        plan=own(plan),
        tables=own(tables),
        scratch_floats=cache,
        threads=threads_for(x.numel() + y.numel()),
        **mixing(filters, alpha, m, x.shape[1], math.prod(window.shape[2:])),
    )
    if failure := function(name)(ctypes.addressof(call)):
        raise_failure(failure, f"a convolution of {tuple(x.shape)}", math.prod(window.shape))


def mixing(filters: Filters, alpha: Tensor | None, m: int, channels: int, taps: int) -> dict[str, int]:
    """D's fields of a `ConvCall` or `WeightCall`.

    Args:
        filters: D.
        alpha: or None, where there is no D.
        m: outputs.
        channels: that the mixing takes.
        taps: of the kernel.

    Raises:
        ValueError: D's tables do not fit each other or the rest.
    """
    if alpha is None or not filters.terms:
        return {}
    if filters.rows:
        return {"mix": Mix.MIX_ROWS, "terms": filters.terms, "cosine": filters.rows}
    maps, terms, bank, q = filters.maps, m * filters.terms, filters.bank, filters.cosine
    count = 0 if bank is None else bank.numel() // taps
    first, second = (*filters.mix, None, None)[:2]
    rank = 0 if first is None or second is None else first.shape[0]
    mix = Mix.MIX_COSINE if q else (Mix.MIX_NONE, Mix.MIX_PLAIN, Mix.MIX_PRODUCT)[len(filters.mix)]
    if not count or (q and (maps % q or not channels <= q or not has_plan(q) or (maps > q and filters.signs is None))):
        raise ValueError(f"{filters} are not those of a convolution of {channels} channels to {m}")
    return {
        "mix": mix,
        "maps": maps,
        "rank": rank,
        "terms": filters.terms,
        "filters": count,
        "cosine": q,
        "first": address(first, (rank or maps) * channels, "D's mixing"),
        "second": address(second, maps * rank, "D's second mixing"),
        "signs": address(filters.signs, maps // q * channels if q else 0, "D's signs"),
        "source": address(filters.source, terms, "the maps of D's terms", torch.int32),
        "filter": address(filters.filter, terms, "the filters of D's terms", torch.int32),
        "bank": address(bank, count * taps, "D's filters"),
    }


def _format(x: Tensor) -> torch.memory_format:
    """Channels last where x is, as torch's convolutions decide it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
