"""The weight of a convolution, made for one call by native code (`csrc/weight.c`), and its derivatives."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from dctps.kernels.conv import address, mix_arguments
from dctps.kernels.filters import Filters
from dctps.kernels.loader import function
from dctps.transforms.dct import cosines

_CPU = torch.device("cpu")
_SERIAL = 1 << 15  # numbers below which one thread does it all


def conv_weight(
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    shape: tuple[int, ...],
    layout: torch.memory_format,
) -> Tensor:
    """alpha D + S as a tensor.

    Args:
        values: float32 (nnz,).
        support: int64 (nnz,), sorted flat positions in S.
        alpha: float32 (1,), or None where there is no D.
        filters: D.
        shape: (m, channels, kh, kw), of one group, or depthwise.
        layout: of the result: contiguous or channels last.
    """
    weight = torch.empty(shape, memory_format=layout)
    _call("weight_forward", weight, layout, values, support, alpha, filters)
    return weight


def conv_weight_backward(
    by_weight: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    *,
    needs_values: bool,
    needs_alpha: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `conv_weight` in values and alpha, those that are needed, from the weight's."""
    layout = torch.contiguous_format
    if not by_weight.is_contiguous():
        layout = torch.channels_last
        by_weight = by_weight.contiguous(memory_format=layout)
    by_values = torch.empty_like(values) if needs_values else None
    by_alpha = torch.empty_like(alpha) if needs_alpha and alpha is not None else None
    _call("weight_backward", by_weight, layout, values, support, alpha, filters, by_values, by_alpha)
    return by_values, by_alpha


def _call(
    name: str,
    weight: Tensor,
    layout: torch.memory_format,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    by_values: Tensor | None = None,
    by_alpha: Tensor | None = None,
) -> None:
    """The arguments in the order of csrc/weight.c, and the call, during which all tensors are alive."""
    m, channels, rows, columns = weight.shape
    values, support = values.contiguous(), support.contiguous()
    length = filters.rows or filters.cosine
    table = cosines(length, torch.float32, _CPU) if length else None
    kind, _, rank, terms, first, second, signs = mix_arguments(filters, alpha)
    packed = array(
        "q",
        (
            m,
            channels,
            rows * columns,
            layout == torch.channels_last or 1 in (channels, rows * columns),
            torch.get_num_threads() if weight.numel() > _SERIAL else 1,
            kind,
            rank,
            terms,
            length,
            first,
            second,
            signs,
            address(table),
            address(filters.source),
            address(filters.filter),
            address(filters.bank),
            address(alpha),
            values.shape[0],
            support.data_ptr(),
            values.data_ptr(),
            weight.data_ptr(),
            address(by_values),
            address(by_alpha),
        ),
    )
    if function(name)(packed.buffer_info()[0]):
        raise MemoryError(f"no memory for the scratch of a weight of {tuple(weight.shape)}")
