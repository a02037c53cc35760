"""The native kernel of linear layers: y = alpha D x + S x + b on rows, and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

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
from dctps.kernels.build import LANES
from dctps.kernels.layouts import LINEAR, Transform
from dctps.kernels.loader import function, variant
from dctps.kernels.plans import dct_indices, dct_twiddles, has_plan

_NONE, _DCT, _HADAMARD = map(int, Transform)
_KINDS = {"none": _NONE, "dct": _DCT, "hadamard": _HADAMARD}
_SERIAL = 1 << 17  # numbers below which one thread does it all


class NativeOffset(NamedTuple):
    """D as the kernel knows it: outputs pick among the frequencies of `rounds` transforms of the inputs.

    Attributes:
        kind: of transform.
        size: q, its length, at least the inputs'; power of two for `hadamard`.
        rounds: how many transforms, each of the inputs under its own signs.
        order: int32 (m): output -> round * q + frequency; None: the first m.
        signs: int8 (rounds, n) or (rounds, n + 1), where the last is common to a round; None: all 1.
    """

    kind: Literal["none", "dct", "hadamard"]
    size: int = 0
    rounds: int = 1
    order: Tensor | None = None
    signs: Tensor | None = None


def linear_forward(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    bias: Tensor | None,
    offset: NativeOffset,
    m: int,
) -> Tensor:
    """Y = x (alpha D + S)^T + b, (batch, m), of x, (batch, n), both float32 or both bfloat16.

    Sums are float32, and rounded once where y is bfloat16. The values are float32 (nnz,), the support int64
    (nnz,): sorted flat positions in S. alpha is float32 (1,), None where there is no D; the bias is float32
    (m,) or None. Another dtype or device is a TypeError; sizes that do not agree, or a support that is none,
    are a ValueError.
    """
    x = _rows(x, "x")
    y = x.new_empty(x.shape[0], m)
    if y.numel():
        _call("linear_forward", x, values, support, alpha, offset, m, y=y, bias=bias)
    return y


def linear_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    offset: NativeOffset,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of `linear_forward` in x, values, alpha and bias, or None if not needed.

    Arguments and errors are those of `linear_forward`; `g` is the gradient of its result, (batch, m). It and
    the derivative in x are of x's dtype, the others are float32.
    """
    g, x = _rows(g, "the gradient of y"), _rows(x, "x")
    (batch, n), m = x.shape, g.shape[1]
    if len(g) != batch or g.dtype != x.dtype:
        found = f"{len(g)} rows of {g.dtype}, and x has {batch} of {x.dtype}"
        raise ValueError(f"the gradient of y has {found}")
    grad_x = x.new_empty(batch, n) if needs[0] else None
    grad_values = new_float32(values.shape) if needs[1] else None
    grad_alpha = new_float32((1,)) if needs[2] and alpha is not None else None
    grad_bias = new_float32((m,)) if needs[3] else None
    grads = grad_x, grad_values, grad_alpha, grad_bias
    if batch:
        _call("linear_backward", x, values, support, alpha, offset, m, g=g, grads=grads)
    else:
        zero_(*grads[1:])
    return grads


def _call(
    name: str,
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    offset: NativeOffset,
    m: int,
    *,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    g: Tensor | None = None,
    grads: Sequence[Tensor | None] = (None,) * 4,
) -> None:
    """The checked arguments, and the call, during which all tensors are alive."""
    (batch, n), nnz, q = x.shape, values.numel(), offset.size
    kept: list[Tensor] = []
    kind = _KINDS[offset.kind] if alpha is not None else _NONE
    plan = tables = None
    if kind and not (0 < n <= q and (offset.order is not None or m <= q * offset.rounds)):
        raise ValueError(f"{offset} is no D of a {m} x {n} layer")
    if kind == _DCT:
        if not has_plan(q):
            raise ValueError(f"the native kernel has no cosine transform of length {q}")
        plan, tables = dct_indices(q, torch.int32, CPU), dct_twiddles(q, torch.float32, CPU)
    order, signs, width = offset.order, offset.signs, 0
    if signs is not None and (width := signs.shape[-1]) not in (n, n + 1):
        raise ValueError(f"D has {width} signs for {n} inputs")
    grad_x, grad_values, grad_alpha, grad_bias = grads
    call = LINEAR.pack(
        batch, m, n, nnz, threads_for(batch * (n + m) + nnz, _SERIAL), x.dtype is torch.bfloat16,
        start_of(x, "x"), x.stride(0), 0 if y is None else y.data_ptr(), address(bias, m, "the bias", kept),
        address(values, nnz, "the values", kept), address(support, nnz, "the support", kept, torch.int64),
        address(alpha, 1, "alpha", kept), kind, q, offset.rounds,
        0 if plan is None else plan.data_ptr(), 0 if tables is None else tables.data_ptr(),
        0 if order is None else address(order, m, "the order of D's outputs", kept, torch.int32),
        0 if signs is None else address(signs, offset.rounds * width, "D's signs", kept, torch.int8), width,
        0 if g is None else start_of(g, "the gradient of y"), 0 if g is None else g.stride(0),
        0 if grad_x is None else grad_x.data_ptr(), 0 if grad_values is None else grad_values.data_ptr(),
        0 if grad_alpha is None else grad_alpha.data_ptr(), 0 if grad_bias is None else grad_bias.data_ptr(),
    )  # fmt: skip
    if failure := function(name, _variant_for(batch))(call):
        raise_failure(failure, f"a {m} x {n} layer", m * n)


def _variant_for(rows: int) -> str:
    """The variant in use, or of its kind one with fewer lanes: a tile costs the same however few its rows."""
    which = variant()
    lanes = 4 if rows <= 4 else 8
    return f"{which}x{lanes}" if rows <= lanes < LANES[which] else which


def _rows(x: Tensor, what: str) -> Tensor:
    """X, checked, with the inputs of a row side by side."""
    x = strided(x, 2, what, readable(x))
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
