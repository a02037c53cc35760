"""The convolution and its first derivatives by the native kernel on strips."""

from __future__ import annotations

from typing import Protocol

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
from dctps.nn.native import single
from dctps.offsets import Offset

Pair = tuple[int, int]


class _Convolution(Protocol):
    @property
    def stride(self) -> Pair: ...
    @property
    def padding(self) -> Pair: ...
    @property
    def dilation(self) -> Pair: ...
    @property
    def groups(self) -> int: ...


def has_native_conv(offset: Offset) -> bool:
    """Whether the kernel knows D as a convolution."""
    return offset.has_filters and variant() != "off"


def native_conv(
    x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor, offset: Offset, op: _Convolution
) -> Tensor:
    """The convolution of x with alpha * D + S."""
    y = conv_forward(single(x), single(values), support, single(alpha), offset.filters(), _window(offset, op))
    return y.to(x.dtype)


def native_conv_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    op: _Convolution,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of `native_conv` in x, values and alpha, those that are needed."""
    by_x, by_values, by_alpha = conv_backward(
        single(g),
        single(x),
        single(values),
        support,
        single(alpha),
        offset.filters(),
        _window(offset, op),
        needs,
    )
    found = (by_x, x), (by_values, values), (by_alpha, alpha)
    return tuple(by if by is None else by.to(like.dtype) for by, like in found)  # type: ignore[return-value,union-attr]


def has_native_weight(offset: Offset) -> bool:
    """Whether native code makes the weight."""
    return has_native_conv(offset) and (offset.groups == 1 or offset.shape[1] == 1)


def native_weight(x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor, offset: Offset) -> Tensor:
    """alpha * D + S in x's dtype, in the layout that the convolution of x wants."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    filters = offset.weight_filters()
    made = conv_weight(single(values), support, single(alpha), filters, offset.shape, layout)
    return made.to(x.dtype)


def native_weight_backward(
    by_weight: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `native_weight` in values and alpha, those that are needed."""
    found = conv_weight_backward(
        single(by_weight),
        single(values),
        support,
        single(alpha),
        offset.weight_filters(),
        needs_values=needs[0],
        needs_alpha=needs[1],
    )
    pairs = (found[0], values), (found[1], alpha)
    return tuple(by if by is None else by.to(like.dtype) for by, like in pairs)  # type: ignore[return-value,union-attr]


def _window(offset: Offset, op: _Convolution) -> Window:
    return Window(offset.shape, op.stride, op.padding, op.dilation, op.groups)
