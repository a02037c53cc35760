"""The products behind the layers, as autograd functions that save x and nothing else of the forward pass.

    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>,  or <g^T x, D> where g^T x was made; accumulated in float64

Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, equations 3 and 4.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function

from dctps.nn.conv_dispatch import choose_conv_backend
from dctps.nn.dispatch import Backend, choose_backend
from dctps.nn.native import has_native, is_plain, native_backward, native_product
from dctps.nn.native_conv import (
    has_native_conv,
    has_native_weight,
    native_conv,
    native_conv_backward,
    native_weight,
    native_weight_backward,
)
from dctps.offsets import Offset
from dctps.sparse import sddmm, spmm

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


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
    dense = offset.to_dense(dtype=compute_dtype(values.dtype), device=values.device)
    return combine(dense, values, support, alpha)


def product(
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    op: Linear | Conv2d,
    backend: Backend,
    bias: Tensor | None = None,
) -> Tensor:
    """`op` on x with W = alpha * D + S, plus b, by the path that `backend` names or the rule chooses."""
    path = _path(x, values, alpha, support, offset, op, backend)
    if _is_native_conv(path, x, values, alpha, support, offset, op):
        native: Tensor = _NativeConv.apply(x, values, alpha, support, offset, op, path == "dense")
        return op.add(native, bias)
    if path == "dense":
        y: Tensor = _Dense.apply(x, values, alpha, support, offset, op)
        return op.add(y, bias)
    pixels = op.to_rows(x)
    if path == "native":
        # In half precision the sum is rounded before b is added, as compiled layers do.
        fused = bias if bias is None or x.dtype == bias.dtype == torch.float32 else None
        rows = _Native.apply(flat(pixels), values, alpha, support, offset, fused)
        y = op.from_rows(unflat(rows, pixels))
        return y if bias is fused else op.add(y, bias)
    rows = _Transform.apply(flat(pixels), values, alpha, support, offset)
    return op.add(op.from_rows(unflat(rows, pixels)), bias)


def product_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    op: Linear | Conv2d,
    backend: Backend,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """The derivatives of `product` in x, values and alpha, those that are needed."""
    path = _path(x, values, alpha, support, offset, op, backend)
    function: Any = {"dense": _Dense, "transform": _Transform, "native": _Native}[path]
    if _is_native_conv(path, x, values, alpha, support, offset, op):
        function = _NativeConv
    by_rows = function not in (_Dense, _NativeConv)
    rows = x
    if by_rows:
        g, pixels = op.to_rows(g, strided=False), op.to_rows(x)
        g, rows = flat(g), flat(pixels)
    saved = SimpleNamespace(
        saved_tensors=(rows, values, alpha, support),
        needs_input_grad=(*needs, False, False, False),
        offset=offset,
        op=op,
        dense=path == "dense",
    )
    by_x, by_values, by_alpha = function.backward(saved, g)[:3]
    if by_rows and by_x is not None:
        by_x = op.spread(unflat(by_x, pixels), x)
    return by_x, by_values, by_alpha


def flat(x: Tensor) -> Tensor:
    """X as a matrix of rows; itself where it is one, since a view costs time in each direction."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def unflat(rows: Tensor, like: Tensor) -> Tensor:
    """Undo `flat` on a result."""
    return rows if like.dim() == 2 else rows.reshape(*like.shape[:-1], rows.shape[-1])


def _path(
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    op: Linear | Conv2d,
    backend: Backend,
) -> Backend:
    if isinstance(op, Conv2d) and (not op.is_rowwise(offset) or op.is_by_strips(x, offset)):
        native = is_plain(x, values, alpha, support) and has_native_conv(offset)
        if native or not op.is_rowwise(offset):
            read, written, positions = op.count_pixels(x, offset)
            return choose_conv_backend(
                backend,
                offset,
                read=read,
                written=written,
                positions=positions,
                nnz=values.numel(),
                native=native,
            )
    native = is_plain(x, values, alpha, support) and has_native(offset) and values.numel() < 2**31
    return choose_backend(backend, offset, rows=op.count_rows(x), nnz=values.numel(), native=native)


def _is_native_conv(
    path: Backend,
    x: Tensor,
    values: Tensor,
    alpha: Tensor | None,
    support: Tensor,
    offset: Offset,
    op: Linear | Conv2d,
) -> bool:
    """Whether the path, for a convolution, has native code: on strips, or to make W."""
    if path == "dense":
        return isinstance(op, Conv2d) and has_native_weight(offset) and is_plain(x, values, alpha, support)
    return path == "native" and op.is_by_strips(x, offset) and has_native_conv(offset)


class _Transform(Function):
    """alpha * D x + S x on rows, D by its transform, S by its nonzeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor, offset: Offset) -> Tensor:
        dtype = compute_dtype(x.dtype)
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
        dtype, shape = compute_dtype(x.dtype), _matrix_shape(ctx.offset)
        by_x = by_values = by_alpha = None
        with no_autocast(x):
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


class _Native(Function):
    """`_Transform`, plus b, by the native kernel, in its first derivatives.

    Without the hooks for batching transforms, which are not at work where this is used: they would cost
    several times the call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.offset = offset
        ctx.save_for_backward(x, values, alpha, support)
        ctx.save_for_forward(x, values, alpha, support)
        return native_product(x, values, alpha, support, offset, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, alpha, support = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[5])
        if torch.is_grad_enabled() or not is_plain(g, x):  # a second derivative may follow, or g is a batch
            ctx.op = Linear()
            function = (
                _Dense if is_legacy_batchedtensor(g) else _Transform
            )  # views have no rule for the former
            return (*function.backward(ctx, g)[:5], g.sum(0) if needs[3] else None)
        *found, by_bias = native_backward(g, x, values, alpha, support, ctx.offset, needs)
        return (*found, None, None, by_bias)

    @staticmethod
    def jvp(
        ctx: Any,
        d_x: Tensor | None,
        d_values: Tensor | None,
        d_alpha: Tensor | None,
        _: None,
        __: None,
        d_bias: Tensor | None,
    ) -> Tensor:
        if d_x is None and d_values is None and d_alpha is None:
            d_x = torch.zeros_like(ctx.saved_tensors[0])
        d_y = _product_rule(_Transform, ctx, (d_x, d_values, d_alpha), ctx.offset)
        return d_y if d_bias is None else d_y + d_bias.to(d_y.dtype)


class _NativeConv(Function):
    """The convolution by native code, in its first derivatives; else as `_Native`.

    On strips, or by the dense kernel and a W that native code makes and takes apart.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        op: Conv2d,
        dense: bool,
    ) -> Tensor:
        ctx.offset, ctx.op, ctx.dense = offset, op, dense
        ctx.save_for_backward(x, values, alpha, support)
        ctx.save_for_forward(x, values, alpha, support)
        if dense:
            return op.apply(x, native_weight(x, values, alpha, support, offset))
        return native_conv(x, values, alpha, support, offset, op)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, alpha, support = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(g, x):  # a second derivative may follow
            return (*_Dense.backward(ctx, g), None)
        needs = ctx.needs_input_grad[:3]
        if not ctx.dense:
            found = native_conv_backward(g, x, values, alpha, support, ctx.offset, ctx.op, needs)
            return (*found, None, None, None, None)
        with no_autocast(x):
            weight = native_weight(x, values, alpha, support, ctx.offset)
            by_x, by_weight = ctx.op.backward(g, x, weight, needs[0], needs[1] or needs[2])
        by_rest: tuple[Tensor | None, ...] = (None, None)
        if by_weight is not None:
            by_rest = native_weight_backward(by_weight, values, alpha, support, ctx.offset, needs[1:])
        return (by_x, *by_rest, None, None, None, None)

    @staticmethod
    def jvp(
        ctx: Any, d_x: Tensor | None, d_values: Tensor | None, d_alpha: Tensor | None, *_: None
    ) -> Tensor:
        return _product_rule(_Dense, ctx, (d_x, d_values, d_alpha), ctx.offset, ctx.op)


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
        op: Linear | Conv2d,
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
        dtype = compute_dtype(x.dtype)
        by_values = by_alpha = None
        with no_autocast(x):
            dense = ctx.offset.to_dense(dtype=dtype, device=x.device)
            weight = combine(dense, values, support, alpha).to(x.dtype)
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
class Linear:
    """x W^T on rows, and its derivatives."""

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on rows, so that a transform applies."""
        return True

    def is_by_strips(self, x: Tensor, offset: Offset) -> bool:
        """Whether the native kernel of convolutions does it, not that of rows."""
        return False

    def count_rows(self, x: Tensor) -> int:
        """How many rows there are in x."""
        return x.shape[0]

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """X with the inputs of one row last."""
        return x

    def from_rows(self, y: Tensor) -> Tensor:
        """Undo `to_rows` on the result."""
        return y

    def spread(self, by_rows: Tensor, x: Tensor) -> Tensor:
        """The transpose of `to_rows`, on a gradient."""
        return by_rows

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Y + b."""
        return y if bias is None else y + bias.to(y.dtype)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with W."""
        return x @ weight.T

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The derivatives in x and W, those that are needed."""
        return g @ weight if need_x else None, g.T @ x if need_weight else None


@dataclass(frozen=True)
class Conv2d:
    """The convolution of x with W, and its derivatives."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on pixels, so that a transform applies."""
        return offset.shape[2:] == (1, 1) and self.groups == 1 and self.padding == (0, 0)

    def is_by_strips(self, x: Tensor, offset: Offset) -> bool:
        """Whether the native kernel of convolutions does it: rows are better only where x lies in rows."""
        in_rows = x.is_contiguous(memory_format=torch.channels_last) and self.stride == (1, 1)
        return not (in_rows and self.is_rowwise(offset))

    def count_pixels(self, x: Tensor, offset: Offset) -> tuple[int, int, int]:
        """Pixels read, pixels of the result, and those with the zeros between them; batch included."""
        batch, rows, columns = x.shape[0], x.shape[2], x.shape[3]
        height, width = (-(-size // by) for size, by in zip((rows, columns), self.stride, strict=True))
        down, across = self.padding
        return batch * rows * columns, batch * height * width, batch * (height + down) * (width + across)

    def count_rows(self, x: Tensor) -> int:
        """How many pixels a 1 x 1 kernel visits."""
        height, width = (-(-size // by) for size, by in zip(x.shape[2:], self.stride, strict=True))
        return x.shape[0] * height * width

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """The pixels that the kernel visits, channels last."""
        return (x[..., :: self.stride[0], :: self.stride[1]] if strided else x).movedim(1, -1)

    def from_rows(self, y: Tensor) -> Tensor:
        """Channels second again."""
        return y.movedim(-1, 1)

    def spread(self, by_rows: Tensor, x: Tensor) -> Tensor:
        """Each pixel's gradient at its place in x, zeros elsewhere."""
        by_x = torch.zeros_like(x)
        by_x[..., :: self.stride[0], :: self.stride[1]] = by_rows.movedim(-1, 1)
        return by_x

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Y + b."""
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with W."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The derivatives in x and W, those that are needed."""
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


def combine(dense: Tensor, values: Tensor, support: Tensor, alpha: Tensor | None) -> Tensor:
    """alpha * D + S, given D."""
    if alpha is not None:
        dense = alpha.to(dense.dtype) * dense
    return dense.reshape(-1).index_add(0, support, values.to(dense.dtype)).reshape(dense.shape)


def _matrix_shape(offset: Offset) -> tuple[int, int]:
    return offset.out_features, offset.in_features


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """FFTs and sparse products have no half-precision kernels; W too is made in float32, then rounded."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from rounding the products inside, which choose their own precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
