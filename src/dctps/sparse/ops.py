"""The three products of a sparse layer, in O(batch * nnz) time and O(batch * (m + n) + nnz) memory.

    spmm             y = x S^T         y[b, r] = sum_k v_k x[b, c_k]   over k with r_k = r
    spmm transposed  y = x S           y[b, c] = sum_k v_k x[b, r_k]   over k with c_k = c
    sddmm            v_k = sum_b g[b, r_k] x[b, c_k]

Each is the derivative of the others, so the three are closed under differentiation of any order.
torch's CSR products do the work, in `csr.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dctps.sparse.csr import sddmm_csr, spmm_csr

Shape = tuple[int, int]


def spmm(values: Tensor, support: Tensor, x: Tensor, shape: Shape, *, transposed: bool = False) -> Tensor:
    """The product x S^T, or x S if `transposed`.

    Args:
        values: (nnz,), float32 or float64.
        support: int64 (nnz,), sorted flat positions in S.
        x: (batch, n), or (batch, m) if `transposed`; of the dtype of `values`.
        shape: (m, n) of S.
        transposed: multiply by S instead of S^T.

    Returns:
        (batch, m), or (batch, n) if `transposed`.
    """
    product: Tensor = _SpMM.apply(values, support, x, *shape, transposed)
    return product


def sddmm(g: Tensor, x: Tensor, support: Tensor, shape: Shape) -> Tensor:
    """The entries of g^T x at the support, without the rest.

    Args:
        g: (batch, m), float32 or float64.
        x: (batch, n), of g's dtype.
        support: int64 (nnz,), sorted flat positions in an m x n matrix.
        shape: (m, n).

    Returns:
        (nnz,)
    """
    entries: Tensor = _SDDMM.apply(g, x, support, *shape)
    return entries


def spmm_ref(values: Tensor, support: Tensor, x: Tensor, shape: Shape, *, transposed: bool = False) -> Tensor:
    """Slow twin of `spmm`: the dense product in float64."""
    dense = torch.zeros(shape[0] * shape[1], dtype=torch.float64, device=values.device)
    dense[support] = values.double()
    dense = dense.reshape(shape)
    return x.double() @ (dense if transposed else dense.T)


def sddmm_ref(g: Tensor, x: Tensor, support: Tensor, shape: Shape) -> Tensor:
    """Slow twin of `sddmm`: the dense product in float64."""
    assert (g.shape[1], x.shape[1]) == shape
    return (g.double().T @ x.double()).flatten()[support]


class _SpMM(Function):
    @staticmethod
    def forward(values: Tensor, support: Tensor, x: Tensor, m: int, n: int, transposed: bool) -> Tensor:
        return spmm_csr(values, support, x, m, n, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, support, x, *ctx.shape, ctx.transposed = inputs
        ctx.save_for_backward(values, support, x)
        ctx.save_for_forward(values, support, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, support, x = ctx.saved_tensors
        by_values = by_x = None
        if ctx.needs_input_grad[0]:
            rows, columns = (x, g) if ctx.transposed else (g, x)
            by_values = sddmm(rows, columns, support, ctx.shape)
        if ctx.needs_input_grad[2]:
            by_x = spmm(values, support, g, ctx.shape, transposed=not ctx.transposed)
        return by_values, None, by_x, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_values: Tensor | None, _: None, d_x: Tensor | None, *__: None) -> Tensor:
        values, support, x = ctx.saved_tensors
        return _sum(
            None if d_values is None else spmm(d_values, support, x, ctx.shape, transposed=ctx.transposed),
            None if d_x is None else spmm(values, support, d_x, ctx.shape, transposed=ctx.transposed),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        values, support, x, m, n, transposed = args
        if in_dims[0] is None and in_dims[1] is None:
            stacked = x.movedim(in_dims[2], 0)
            y = spmm(values, support, stacked.flatten(0, 1), (m, n), transposed=transposed)
            return y.unflatten(0, stacked.shape[:2]), 0
        return _one_by_one(_SpMM, info.batch_size, in_dims, args)


class _SDDMM(Function):
    @staticmethod
    def forward(g: Tensor, x: Tensor, support: Tensor, m: int, n: int) -> Tensor:
        return sddmm_csr(g, x, support, m, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, support, *ctx.shape = inputs
        ctx.save_for_backward(g, x, support)
        ctx.save_for_forward(g, x, support)

    @staticmethod
    def backward(ctx: Any, by_entry: Tensor) -> tuple[Tensor | None, ...]:
        g, x, support = ctx.saved_tensors
        by_g = by_x = None
        if ctx.needs_input_grad[0]:
            by_g = spmm(by_entry, support, x, ctx.shape)
        if ctx.needs_input_grad[1]:
            by_x = spmm(by_entry, support, g, ctx.shape, transposed=True)
        return by_g, by_x, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_g: Tensor | None, d_x: Tensor | None, *_: None) -> Tensor:
        g, x, support = ctx.saved_tensors
        return _sum(
            None if d_g is None else sddmm(d_g, x, support, ctx.shape),
            None if d_x is None else sddmm(g, d_x, support, ctx.shape),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _one_by_one(_SDDMM, info.batch_size, in_dims, args)


def _one_by_one(
    op: type[Function], batch_size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """The batching rule where the matrices themselves differ: torch has no batched CSR product."""

    def pick(argument: Any, dim: int | None, i: int) -> Any:
        if dim is None:
            return argument
        return argument.select(dim, i) if batch_size else argument.sum(dim)  # no slice: zeros of its shape

    outputs = [
        op.apply(*(pick(argument, dim, i) for argument, dim in zip(args, in_dims, strict=True)))
        for i in range(max(batch_size, 1))
    ]
    return torch.stack(outputs)[:batch_size], 0


def _sum(*terms: Tensor | None) -> Tensor:
    given = [t for t in terms if t is not None]
    return functools.reduce(torch.add, given)
