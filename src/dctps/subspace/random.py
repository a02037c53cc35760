"""Unstructured projections: a Gaussian matrix, and a sparse one of random signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dctps.counter import derive_key, normal, sample, signs
from dctps.sparse import spmm
from dctps.subspace.projection import DENSE_LIMIT, DRAWN_AT_ONCE, Projection, register_projection


@register_projection("dense")
class DenseProjection(Projection):
    """P is G with every column divided by its norm; G[i, j] = normal draw i d + j of the key "projection".

    Held while it has at most 10^8 entries. A larger one is drawn again in row blocks at every product,
    some 40 ns an entry on a CPU core: for a check, not for training.
    """

    @property
    def holds(self) -> bool:
        """Whether P is held."""
        return self.size * self.dimensions <= DENSE_LIMIT

    def apply(self, v: Tensor) -> Tensor:
        """P v."""
        table = self._drawn(v)[0]
        if self.holds:
            return v @ table
        weighted = table * v
        return torch.cat([self._rows(*rows, v.device).to(v.dtype) @ weighted for rows in self._row_blocks()])

    def adjoint(self, g: Tensor) -> Tensor:
        """P^T g."""
        table = self._drawn(g)[0]
        if self.holds:
            return table @ g
        total = g.new_zeros(self.dimensions)
        for first, last in self._row_blocks():
            total += g[first:last] @ self._rows(first, last, g.device).to(g.dtype)
        return total * table

    def held_bytes(self, itemsize: int = 4) -> int:
        """P, or the norms of its columns."""
        return itemsize * self.dimensions * (self.size if self.holds else 1)

    def _draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
        """P's transpose, or the reciprocal norms of G's columns."""
        squares = torch.zeros(self.dimensions, dtype=torch.float64, device=device)
        # Columns side by side: at some hundred of them both products are twice as fast as on rows.
        held = torch.empty(self.dimensions, self.size if self.holds else 0, dtype=dtype, device=device)
        for first, last in self._row_blocks():
            rows = self._rows(first, last, device)
            squares += rows.square().sum(0)
            if self.holds:
                held[:, first:last] = rows.T
        scale = squares.rsqrt().to(dtype)
        return (held.mul_(scale[:, None]),) if self.holds else (scale,)

    def _row_blocks(self) -> list[tuple[int, int]]:
        height = max(1, DRAWN_AT_ONCE // self.dimensions)
        return [(first, min(first + height, self.size)) for first in range(0, self.size, height)]

    def _rows(self, first: int, last: int, device: torch.device) -> Tensor:
        """Rows of G, float64."""
        key = derive_key(self.seed, "", "projection")
        counter = torch.arange(first * self.dimensions, last * self.dimensions, device=device)
        return normal(key, counter).reshape(-1, self.dimensions)


@register_projection("sparse")
class SparseProjection(Projection):
    """P has round(d sqrt(D)) entries, a share of 1/sqrt(D), +-1 over the root of their number in the column.

    Their flat row-major positions are `sample` of the key "projection", their signs, in that order, those of
    the key "projection-signs". A column without an entry, of which a network of a thousand parameters has
    one in 10^13, moves nothing.

    Reference: Li, Hastie and Church, "Very Sparse Random Projections", KDD 2006.
    """

    @property
    def nnz(self) -> int:
        """Entries of P."""
        return min(round(self.dimensions * math.sqrt(self.size)), self.size * self.dimensions)

    def apply(self, v: Tensor) -> Tensor:
        """P v."""
        values, support = self._drawn(v)
        return spmm(values, support, v[None], (self.size, self.dimensions))[0]

    def adjoint(self, g: Tensor) -> Tensor:
        """P^T g."""
        values, support = self._drawn(g)
        return spmm(values, support, g[None], (self.size, self.dimensions), transposed=True)[0]

    def held_bytes(self, itemsize: int = 4) -> int:
        """The entries and their positions."""
        return (8 + itemsize) * self.nnz

    def _draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The entries, and their positions."""
        size = self.size * self.dimensions
        support = sample(derive_key(self.seed, "", "projection"), self.nnz, size, device=device)
        sign = signs(derive_key(self.seed, "", "projection-signs"), self.nnz, device=device)
        column = support % self.dimensions
        count = torch.bincount(column, minlength=self.dimensions)
        return (sign * count[column].double().rsqrt()).to(dtype), support
