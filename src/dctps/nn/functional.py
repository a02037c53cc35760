"""y = alpha * D x + S x + b, with derivatives that save x and nothing else of the forward pass.

    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>,  or <g^T x, D> where g^T x was made; accumulated in float64

Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, equations 3 and 4.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dctps.nn.dispatch import Backend, choose_backend
from dctps.offsets import Offset
from dctps.sparse import sddmm, spmm


def dps_weight(values: Tensor, support: Tensor, offset: Offset, alpha: Tensor | None) -> Tensor:
    """W = alpha * D + S as a dense tensor of the weight's shape, differentiable in `values` and `alpha`.

    Args:
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in W.
        offset: D.
        alpha: (1,), or None where there is no D.

    Returns:
        W, in float64 if `values` are, else in float32.
    """
    dense = offset.to_dense(dtype=_compute_dtype(values.dtype), device=values.device)
    return _combine(dense, values, support, alpha)


def dps_linear(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Y = x (alpha * D + S)^T + b.

    Args:
        x: (*, n), float32, float64, bfloat16 or float16; cast as for `F.linear` under autocast.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in the m x n weight.
        offset: D, of shape (m, n).
        alpha: (1,), or None where there is no D.
        bias: (m,) or None.
        backend: which path; `"auto"` follows the rule of `dispatch.py`.

    Returns:
        (*, m), of x's dtype.
    """
    x = _autocast(x)
    with _no_autocast(x):
        rows = x.reshape(-1, offset.in_features)
        chosen = choose_backend(backend, offset, rows=rows.shape[0], nnz=values.numel())
        y: Tensor
        if chosen == "dense":
            y = _Dense.apply(rows, values, alpha, support, offset, _Linear())
        else:
            y = _Transform.apply(rows, values, alpha, support, offset)
        y = y.reshape(*x.shape[:-1], offset.out_features)
        return y if bias is None else y + bias.to(y.dtype)


def dps_conv2d(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    backend: Backend = "auto",
) -> Tensor:
    """The 2-D convolution of x with W = alpha * D + S, plus bias.

    A 1 x 1 kernel is a linear map along the channels and may take its transform; larger kernels make W
    for the call.

    Args:
        x: (batch, channels, height, width), dtypes as `dps_linear`.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in W.
        offset: D, of shape (out, channels / groups, kh, kw), in `offset.groups` groups.
        alpha: (1,), or None where there is no D.
        bias: (out,) or None.
        stride: of the kernel, rows and columns; `padding` (zeros) and `dilation` likewise.
        padding: see `stride`.
        dilation: see `stride`.
        backend: which path; `"auto"` follows the rule of `dispatch.py`.

    Returns:
        (batch, out, height', width'), of x's dtype.

    Raises:
        ValueError: `backend="transform"` for a kernel that has none.
    """
    x = _autocast(x)
    with _no_autocast(x):
        y: Tensor
        pointwise = offset.shape[2:] == (1, 1) and offset.groups == 1 and padding == (0, 0)
        if pointwise:
            strided = x[..., :: stride[0], :: stride[1]]
            backend = choose_backend(backend, offset, rows=strided[:, :1].numel(), nnz=values.numel())
        elif backend == "transform":
            raise ValueError("only 1 x 1 convolutions without groups and padding have a transform path")
        if pointwise and backend == "transform":
            pixels = strided.movedim(1, -1)
            y = _Transform.apply(pixels.reshape(-1, pixels.shape[-1]), values, alpha, support, offset)
            y = y.reshape(*pixels.shape[:-1], offset.out_features).movedim(-1, 1)
        else:
            op = _Conv2d(stride, padding, dilation, offset.groups)
            y = _Dense.apply(x, values, alpha, support, offset, op)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _Transform(Function):
    """alpha * D x + S x on rows, D by its transform, S by its nonzeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor, offset: Offset) -> Tensor:
        dtype = _compute_dtype(x.dtype)
        rows = x.to(dtype)
        y = None if alpha is None else alpha.to(dtype) * offset.apply(rows)
        if y is None or values.numel():
            s = spmm(values.to(dtype), support, rows, _matrix_shape(offset))
            y = s if y is None else y + s
        return y.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, alpha, support, ctx.offset = inputs
        ctx.save_for_backward(x, values, alpha, support)
        ctx.save_for_forward(x, values, alpha, support)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, alpha, support = ctx.saved_tensors
        need_x, need_values, need_alpha = ctx.needs_input_grad[:3]
        dtype, shape = _compute_dtype(x.dtype), _matrix_shape(ctx.offset)
        by_x = by_values = by_alpha = None
        with _no_autocast(x):
            rows, g = x.to(dtype), g.to(dtype)
            if alpha is not None and (need_x or need_alpha):
                dt_g = ctx.offset.adjoint(g)
                by_x = alpha.to(dtype) * dt_g
                if need_alpha:
                    by_alpha = (dt_g * rows).sum(dtype=torch.float64).reshape(1).to(alpha.dtype)
            if need_x and (by_x is None or values.numel()):
                st_g = spmm(values.to(dtype), support, g, shape, transposed=True)
                by_x = st_g if by_x is None else by_x + st_g
            if need_values:
                by_values = sddmm(g, rows, support, shape).to(values.dtype)
            if by_x is not None:
                by_x = by_x.to(x.dtype)
        return by_x, by_values, by_alpha, None, None

    @staticmethod
    def jvp(
        ctx: Any, d_x: Tensor | None, d_values: Tensor | None, d_alpha: Tensor | None, *_: None
    ) -> Tensor:
        return _product_rule(_Transform, ctx, (d_x, d_values, d_alpha), ctx.offset)


class _Dense(Function):
    """The product with W = alpha * D + S, which is made in each direction and dropped after it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        op: _Linear | _Conv2d,
    ) -> Tensor:
        return op.apply(x, dps_weight(values, support, offset, alpha).to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, alpha, support, ctx.offset, ctx.op = inputs
        ctx.save_for_backward(x, values, alpha, support)
        ctx.save_for_forward(x, values, alpha, support)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, alpha, support = ctx.saved_tensors
        need_x, need_values, need_alpha = ctx.needs_input_grad[:3]
        dtype = _compute_dtype(x.dtype)
        by_values = by_alpha = None
        with _no_autocast(x):
            dense = ctx.offset.to_dense(dtype=dtype, device=x.device)
            weight = _combine(dense, values, support, alpha).to(x.dtype)
            by_x, by_weight = ctx.op.backward(g, x, weight, need_x, need_values or need_alpha)
            if need_values:
                by_values = by_weight.reshape(-1)[support].to(values.dtype)
            if need_alpha:
                by_alpha = (by_weight.to(dtype) * dense).sum(dtype=torch.float64).reshape(1).to(alpha.dtype)
        return by_x, by_values, by_alpha, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, d_x: Tensor | None, d_values: Tensor | None, d_alpha: Tensor | None, *_: None
    ) -> Tensor:
        return _product_rule(_Dense, ctx, (d_x, d_values, d_alpha), ctx.offset, ctx.op)


@dataclass(frozen=True)
class _Linear:
    """x W^T, and its derivatives."""

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return g @ weight if need_x else None, g.T @ x if need_weight else None


@dataclass(frozen=True)
class _Conv2d:
    """The convolution of x with W, and its derivatives."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (need_x, need_weight, False),
        )
        return by_x, by_weight


def _product_rule(
    function: type[Function], ctx: Any, tangents: tuple[Tensor | None, ...], *constants: Any
) -> Tensor:
    """The forward derivative of a map that is linear in x, and linear in (values, alpha) together."""
    x, values, alpha, support = ctx.saved_tensors
    d_x, d_values, d_alpha = tangents
    terms: list[Tensor] = []
    if d_x is not None:
        terms.append(function.apply(d_x, values, alpha, support, *constants))
    if d_values is not None or d_alpha is not None:
        d_values = torch.zeros_like(values) if d_values is None else d_values
        d_alpha = torch.zeros_like(alpha) if d_alpha is None and alpha is not None else d_alpha
        terms.append(function.apply(x, d_values, d_alpha, support, *constants))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _combine(dense: Tensor, values: Tensor, support: Tensor, alpha: Tensor | None) -> Tensor:
    """alpha * D + S, given D."""
    if alpha is not None:
        dense = alpha.to(dense.dtype) * dense
    return dense.reshape(-1).index_add(0, support, values.to(dense.dtype)).reshape(dense.shape)


def _matrix_shape(offset: Offset) -> tuple[int, int]:
    return offset.out_features, offset.in_features


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """FFTs and sparse products have no half-precision kernels; W too is made in float32, then rounded."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _autocast(x: Tensor) -> Tensor:
    """X in the dtype that autocast would give `F.linear`'s input."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from rounding the products inside, which choose their own precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
