"""The sparse products as torch operators, on torch's CSR kernels.

They are operators, not plain functions, so that compilers and batching transforms see one opaque call:
CSR tensors have neither batches nor fake versions. The row pointers and columns are made from the
support for each call, which costs O(m + nnz) against the product's O(batch * nnz) and leaves no index
table to store or to keep in step.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor
from torch import library as torch_library

_library = torch_library.Library("dctps", "DEF")
_library.define("spmm(Tensor values, Tensor support, Tensor x, int m, int n, bool transposed) -> Tensor")
_library.define("sddmm(Tensor g, Tensor x, Tensor support, int m, int n) -> Tensor")


def spmm_csr(values: Tensor, support: Tensor, x: Tensor, m: int, n: int, transposed: bool) -> Tensor:
    """The operator behind `spmm`, without derivatives."""
    product: Tensor = torch.ops.dctps.spmm(values, support, x, m, n, transposed)
    return product


def sddmm_csr(g: Tensor, x: Tensor, support: Tensor, m: int, n: int) -> Tensor:
    """The operator behind `sddmm`, without derivatives."""
    entries: Tensor = torch.ops.dctps.sddmm(g, x, support, m, n)
    return entries


@torch_library.impl(_library, "spmm", "CompositeExplicitAutograd")
def _spmm(values: Tensor, support: Tensor, x: Tensor, m: int, n: int, transposed: bool) -> Tensor:
    if values.numel() == 0 or x.shape[0] == 0:
        return x.new_zeros(x.shape[0], n if transposed else m)
    pointers, columns = _compressed_rows(support, m, n)
    if transposed:  # S in compressed rows is S^T in compressed columns
        matrix = torch.sparse_csc_tensor(pointers, columns, values, (n, m), check_invariants=False)
    else:
        matrix = torch.sparse_csr_tensor(pointers, columns, values, (m, n), check_invariants=False)
    return (matrix @ x.T).T.contiguous()


@torch_library.impl(_library, "sddmm", "CompositeExplicitAutograd")
def _sddmm(g: Tensor, x: Tensor, support: Tensor, m: int, n: int) -> Tensor:
    if support.numel() == 0 or x.shape[0] == 0:
        return x.new_zeros(support.shape)
    pointers, columns = _compressed_rows(support, m, n)
    zeros = x.new_zeros(support.shape)
    pattern = torch.sparse_csr_tensor(pointers, columns, zeros, (m, n), check_invariants=False)
    entries: Tensor = torch.sparse.sampled_addmm(pattern, g.T, x, beta=0.0).values()
    return entries


@torch_library.register_fake("dctps::spmm", lib=_library)  # type: ignore[untyped-decorator]
def _spmm_fake(values: Tensor, support: Tensor, x: Tensor, m: int, n: int, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], n if transposed else m)


@torch_library.register_fake("dctps::sddmm", lib=_library)  # type: ignore[untyped-decorator]
def _sddmm_fake(g: Tensor, x: Tensor, support: Tensor, m: int, n: int) -> Tensor:
    return x.new_empty(support.shape)


def _compressed_rows(support: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    _acknowledge_beta()
    starts = torch.arange(m + 1, dtype=torch.int64, device=support.device) * n
    return torch.searchsorted(support, starts), support % n


@functools.cache
def _acknowledge_beta() -> None:
    """Torch warns once in a process that CSR is in beta; this library's users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.zeros(2, dtype=torch.int64, device="cpu")
        torch.sparse_csr_tensor(one, one[:0], one[:0], (1, 1))
