"""The native kernel of convolutions: y = alpha D x + S x, and its derivatives, on strips (`csrc/conv/`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels.boundary import (
    CPU,
    address,
    raise_failure,
    start_of,
    strided,
    threads_for,
)
from dctps.kernels.filters import Filters
from dctps.kernels.layouts import CONV, Mix
from dctps.kernels.loader import function
from dctps.kernels.plans import dct_indices, dct_twiddles, has_plan

_CACHE = 260_000  # floats of one thread's strips, to stay in L2
_NO_STRIDES, _NO_MIXING = (0,) * 4, (0,) * 12
_NONE, _PLAIN, _PRODUCT, _COSINE, _ROWS = map(int, Mix)


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
        """The shape of the convolution of x, as torch's own has it.

        Raises:
            ValueError: x has other channels than the kernel, or the kernel is larger than x.
        """
        if x.shape[1] != self.shape[1] * self.groups or min(self.stride) < 1:
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit {self}")
        rows, columns = self.sizes(x.shape[2:])
        if rows < 1 or columns < 1:
            raise ValueError(f"images of shape {tuple(x.shape)} are smaller than {self}")
        return x.shape[0], self.shape[0], rows, columns

    def sizes(self, image: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the results for images of so many rows and columns."""
        (height, width), (up, side), (down, across) = image, self.padding, self.dilation
        return (
            (height + 2 * up - down * (self.shape[2] - 1) - 1) // self.stride[0] + 1,
            (width + 2 * side - across * (self.shape[3] - 1) - 1) // self.stride[1] + 1,
        )

    def check(self, x: Tensor, g: Tensor) -> None:
        """Compare the batch and channels of x and of a gradient of its convolution; C compares the pixels.

        Raises:
            ValueError: they do not fit the kernel.
        """
        batch, channels, _, _ = x.shape
        same = g.shape[0] == batch and g.shape[1] == self.shape[0] and channels == self.shape[1] * self.groups
        if not same or 0 in self.stride:
            raise ValueError(f"{tuple(x.shape)} and a gradient of {tuple(g.shape)} do not fit {self}")


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
    """The derivatives of `conv_forward` in x, values and alpha, as needed; arguments and errors alike.

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
    window.check(x, g)
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
    m, nnz, q = window.shape[0], values.numel(), filters.cosine
    kept: list[Tensor] = []
    mix = mixing(filters, alpha, m, x.shape[1], window.shape[2] * window.shape[3])
    plan = dct_indices(q, torch.int32, CPU) if q else None
    tables = dct_twiddles(q, torch.float32, CPU) if q else None
    call = CONV.pack(
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
        start_of(x, "x"),
        address(bias, m, "the bias", kept),
        start_of(y, "y"),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_values is None else grad_values.data_ptr(),
        0 if grad_alpha is None else grad_alpha.data_ptr(),
        nnz,
        address(support, nnz, "the support", kept, torch.int64),
        address(values, nnz, "the values", kept),
        address(alpha, 1, "alpha", kept),
        *mix,
        0 if plan is None else plan.data_ptr(),
        0 if tables is None else tables.data_ptr(),
        cache,
        threads_for(x.numel() + y.numel()),
    )
    if failure := function(name)(call):
        raise_failure(failure, f"a convolution of {tuple(x.shape)} by {window}", math.prod(window.shape))


def mixing(filters: Filters, alpha: Tensor | None, m: int, channels: int, taps: int) -> tuple[int, ...]:
    """D's fields of a call, from `mix` to `bank`; its tables are checked once.

    Args:
        filters: D.
        alpha: or None, where there is no D.
        m: outputs.
        channels: that the mixing takes.
        taps: of the kernel.

    Raises:
        TypeError: a table of another dtype, or not on the CPU.
        ValueError: D's tables do not fit each other or the rest.
    """
    if alpha is None or not filters.terms:
        return _NO_MIXING
    size = m, channels, taps
    if size not in filters.checked:
        kept: list[Tensor] = []
        filters.checked[size] = _mixing(filters, *size, kept), kept
    fields: tuple[int, ...] = filters.checked[size][0]
    return fields


def _mixing(filters: Filters, m: int, channels: int, taps: int, kept: list[Tensor]) -> tuple[int, ...]:
    terms, maps, q, bank = filters.terms, filters.maps, filters.cosine, filters.bank
    if filters.rows:
        return _ROWS, 0, 0, terms, 0, 0, 0, filters.rows, 0, 0, 0, 0
    first, second = (*filters.mix, None, None)[:2]
    rank = 0 if first is None or second is None else first.shape[0]
    rounds, count = maps // q if q else 0, 0 if bank is None else bank.numel() // taps
    if not count or (q and not (rounds * q == maps and channels <= q and has_plan(q))):
        raise ValueError(
            f"D's tables are not those of a convolution of {channels} channels to {m}: {filters}"
        )
    if rounds > 1 and filters.signs is None:
        raise ValueError(f"D has {rounds} transforms of the channels, and no signs for them: {filters}")
    return (
        _COSINE if q else (_NONE, _PLAIN, _PRODUCT)[len(filters.mix)],
        maps,
        rank,
        terms,
        count,
        address(first, (rank or maps) * channels, "D's mixing", kept),
        address(second, maps * rank, "D's second mixing", kept),
        q,
        address(filters.signs, rounds * channels, "D's signs", kept),
        address(filters.source, m * terms, "the maps of D's terms", kept, torch.int32),
        address(filters.filter, m * terms, "the filters of D's terms", kept, torch.int32),
        address(bank, count * taps, "D's filters", kept),
    )


def _format(x: Tensor) -> torch.memory_format:
    """Channels last where x is, as torch's convolutions decide it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
