"""The native kernel of convolutions: y = alpha D x + S x, and its derivatives, on strips (`csrc/conv.c`)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels.filters import Filters
from dctps.kernels.loader import function
from dctps.kernels.plans import dct_indices, dct_twiddles

_CPU = torch.device("cpu")
_NONE, _PLAIN, _PRODUCT, _COSINE, _ROWS = range(5)
_CACHE = 260_000  # floats of one thread's strips, to stay in L2
_SERIAL = 1 << 15  # numbers below which one thread does it all


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
    """
    y = torch.empty(window.outputs(x), memory_format=_format(x))
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
    """The derivatives of `conv_forward` in x, values and alpha, those that are needed; its other arguments.

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
    needs_x, needs_values, needs_alpha = needs
    by_x = torch.empty(x.shape, memory_format=_format(x)) if needs_x else None
    if by_x is not None and not (g.numel() and window.reads_all()):
        by_x.zero_()
    by_values = torch.empty_like(values) if needs_values else None
    by_alpha = torch.empty_like(alpha) if needs_alpha and alpha is not None else None
    if g.numel():
        outs = {"dx": by_x, "dvalues": by_values, "dalpha": by_alpha}
        _call("conv_backward", x, g, values, support, alpha, filters, window, cache, **outs)
    else:
        for by in (by_values, by_alpha):
            if by is not None:
                by.zero_()
    return by_x, by_values, by_alpha


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
    dx: Tensor | None = None,
    dvalues: Tensor | None = None,
    dalpha: Tensor | None = None,
) -> None:
    """The arguments in the order of csrc/conv.c, and the call, during which all tensors are alive."""
    plan = tables = None
    values, support = values.contiguous(), support.contiguous()
    if filters.cosine:
        plan = dct_indices(filters.cosine, torch.int32, _CPU)
        tables = dct_twiddles(filters.cosine, torch.float32, _CPU)
    kind, maps, rank, terms, first, second, signs = mix_arguments(filters, alpha)
    packed = array(
        "q",
        (
            *x.shape,
            *y.shape[1:],
            window.groups,
            *window.shape[2:],
            *window.stride,
            *window.padding,
            *window.dilation,
            *x.stride(),
            *y.stride(),
            *((0,) * 4 if dx is None else dx.stride()),
            x.data_ptr(),
            address(bias),
            y.data_ptr(),
            address(dx),
            address(dvalues),
            address(dalpha),
            values.shape[0],
            support.data_ptr(),
            values.data_ptr(),
            address(alpha),
            kind,
            maps,
            rank,
            terms,
            first,
            second,
            filters.cosine,
            signs,
            address(plan),
            address(tables),
            address(filters.source),
            address(filters.filter),
            address(filters.bank),
            cache,
            torch.get_num_threads() if x.numel() + y.numel() > _SERIAL else 1,
        ),
    )
    if function(name)(packed.buffer_info()[0]):
        raise MemoryError(f"no memory for the scratch of a convolution of {tuple(x.shape)}")


def mix_arguments(filters: Filters, alpha: Tensor | None) -> tuple[int, ...]:
    """The mixing as the sources know it: kind, maps, rank, terms, and the addresses of matrices and signs."""
    if alpha is None:
        return _NONE, 0, 0, 0, 0, 0, 0
    first, second = (*filters.mix, None, None)[:2]
    if filters.rows:
        kind = _ROWS
    else:
        kind = _COSINE if filters.cosine else (_NONE, _PLAIN, _PRODUCT)[len(filters.mix)]
    rank = 0 if first is None or second is None else first.shape[0]
    return kind, filters.maps, rank, filters.terms, address(first), address(second), address(filters.signs)


def _format(x: Tensor) -> torch.memory_format:
    """Channels last where x is, as torch's convolutions decide it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def address(t: Tensor | None) -> int:
    """Where its numbers lie; 0 for none."""
    return 0 if t is None else t.data_ptr()
