"""The weight of a convolution, made for one call by native code (`csrc/weight/weight.c`), and its derivatives."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, own, raise_failure, refuse, threads_for
from dctps.kernels.conv import mixing
from dctps.kernels.filters import Filters
from dctps.kernels.layouts import WeightCall
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
    """alpha D + S as a tensor.

    Args:
        values: float32 (nnz,).
        support: int64 (nnz,), sorted flat positions in S.
        alpha: float32 (1,), or None where there is no D.
        filters: D.
        shape: (m, channels, kh, kw), of one group, or depthwise.
        layout: of the result: contiguous or channels last.

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: sizes that do not agree, or a support that is none.
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
    """The derivatives of `conv_weight` in values and alpha, those that are needed, from the weight's; errors alike."""
    layout = torch.contiguous_format
    if not grad_weight.is_contiguous():
        layout = torch.channels_last
        grad_weight = grad_weight.contiguous(memory_format=layout)
    if grad_weight.dtype is not torch.float32 or not grad_weight.is_cpu or grad_weight.is_neg():
        refuse(grad_weight, "the gradient of W", "numbers", torch.float32)
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
    (m, channels, rows, columns), nnz = weight.shape, values.numel()
    values, support = values.contiguous(), support.contiguous()
    length = filters.rows or filters.cosine
    table = cosines(length, torch.float32, CPU) if length else None
    call = WeightCall(
        outputs=m,
        channels=channels,
        taps=rows * columns,
        channels_last=layout == torch.channels_last or 1 in (channels, rows * columns),
        threads=threads_for(weight.numel()),
        cosines=own(table),
        alpha=address(alpha, 1, "alpha"),
        nnz=nnz,
        support=address(support, nnz, "the support", torch.int64),
        values=address(values, nnz, "the values"),
        weight=weight.data_ptr(),
        grad_values=own(grad_values),
        grad_alpha=own(grad_alpha),
        **mixing(filters, alpha, m, channels, rows * columns),
    )
    if failure := function(name)(ctypes.addressof(call)):
        raise_failure(failure, f"a weight of {tuple(weight.shape)}", math.prod(weight.shape))
