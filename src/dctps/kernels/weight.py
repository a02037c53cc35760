"""The weight of a convolution, made for one call by native code (`csrc/weight/`), and its derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, raise_failure, start_of, strided, threads_for
from dctps.kernels.filters import Filters, mixing
from dctps.kernels.layouts import WEIGHT
from dctps.kernels.loader import function
from dctps.transforms.dct import cosines


def conv_weight(
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    shape: tuple[int, ...],
    layout: torch.memory_format,
) -> Tensor:
    """alpha D + S, float32 of `shape`: (m, channels, kh, kw) of one group, or depthwise.

    Values, support and alpha are as for `conv_forward`, errors too; `layout` is contiguous or channels last.
    """
    weight = torch.empty(shape, dtype=torch.float32, device=CPU, memory_format=layout)
    _call("weight_forward", weight, layout, values, support, alpha, filters)
    return weight


def conv_weight_backward(
    grad_weight: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    *,
    needs_values: bool,
    needs_alpha: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of `conv_weight` in values and alpha, as needed, from the weight's; errors alike."""
    layout, grad_weight = torch.contiguous_format, strided(grad_weight, 4, "the gradient of W")
    if not grad_weight.is_contiguous():
        layout = torch.channels_last
        grad_weight = grad_weight.contiguous(memory_format=layout)
    grad_values = grad_weight.new_empty(values.shape) if needs_values else None
    grad_alpha = grad_weight.new_empty(1) if needs_alpha and alpha is not None else None
    _call("weight_backward", grad_weight, layout, values, support, alpha, filters, grad_values, grad_alpha)
    return grad_values, grad_alpha


def _call(
    name: str,
    weight: Tensor,
    layout: torch.memory_format,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    filters: Filters,
    grad_values: Tensor | None = None,
    grad_alpha: Tensor | None = None,
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    m, channels, rows, columns = weight.shape
    taps, nnz, length = rows * columns, values.numel(), filters.rows or filters.cosine
    kept: list[Tensor] = []
    table = cosines(length, torch.float32, CPU) if length else None
    call = WEIGHT.pack(
        m, channels, taps, layout == torch.channels_last or 1 in (channels, taps),
        threads_for(weight.numel()), *mixing(filters, alpha, m, channels, taps),
        0 if table is None else table.data_ptr(), address(alpha, 1, "alpha", kept), nnz,
        address(support, nnz, "the support", kept, torch.int64), address(values, nnz, "the values", kept),
        start_of(weight, "the weight"), 0 if grad_values is None else grad_values.data_ptr(),
        0 if grad_alpha is None else grad_alpha.data_ptr(),
    )  # fmt: skip
    if failure := function(name)(call):
        raise_failure(failure, f"a weight of {tuple(weight.shape)}", weight.numel())
