"""The projections: a Gaussian matrix, a sparse one of random signs, and Fastfood, which is structured."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.counter import derive_key, normal, permutation, sample, signs
from dctps.sparse import spmm
from dctps.subspace.projection import DRAWN_AT_ONCE, Projection, register_projection
from dctps.transforms import hadamard


@register_projection("dense")
class DenseProjection(Projection):
    """P is G with every column divided by its norm; G[i, j] = normal draw i d + j of the key "projection".

    P is held. With more than 10^8 entries take Fastfood.
    """

    def apply(self, v: Tensor) -> Tensor:
        """P v."""
        return v @ self._drawn(v)[0]

    def adjoint(self, g: Tensor) -> Tensor:
        """P^T g."""
        return self._drawn(g)[0] @ g

    def held_bytes(self, itemsize: int = 4) -> int:
        """P."""
        return itemsize * self.dimensions * self.size

    def _draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
        """P's transpose."""
        squares = torch.zeros(self.dimensions, dtype=torch.float64, device=device)
        # Columns side by side: at some hundred of them both products are twice as fast as on rows.
        held = torch.empty(self.dimensions, self.size, dtype=dtype, device=device)
        key, height = derive_key(self.seed, "", "projection"), max(1, DRAWN_AT_ONCE // self.dimensions)
        for first in range(0, self.size, height):
            last = min(first + height, self.size)
            counter = torch.arange(first * self.dimensions, last * self.dimensions, device=device)
            rows = normal(key, counter).reshape(-1, self.dimensions)  # of G, float64
            squares += rows.square().sum(0)
            held[:, first:last] = rows.T
        return (held.mul_(squares.rsqrt().to(dtype)[:, None]),)


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


@register_projection("fastfood")
class FastfoodProjection(Projection):
    """P = c (H Pi G H B)[:D, :d], L = 2^ceil(log2 D), c = 1 / sqrt(D sum_i G_i^2); never stored.

    H is Sylvester's Hadamard matrix of size L, B signs (key "projection-signs"), G normal numbers (key
    "projection-scales"), Pi a permutation (key "projection": (Pi x)_i = x at the i-th place of it). These
    three are held, O(L). A column of the whole L x L matrix has the norm sqrt(L sum G^2) exactly; of its
    first D rows sqrt(D / L) of that on average.

    References: Le, Sarlos and Smola, "Fastfood", ICML 2013; Li et al., ICLR 2018, supplement S7.
    """

    @property
    def length(self) -> int:
        """L: of the transforms."""
        return 1 << (self.size - 1).bit_length()

    def apply(self, v: Tensor) -> Tensor:
        """P v: one transform of length d, rounded up to a power of two, and one of length L."""
        flips, order, scales = self._drawn(v)
        # The transform of a vector with zeros after its first 2^b numbers repeats that of these numbers.
        short = hadamard(F.pad(v * flips, (0, self._padding)))
        spread = (short * scales.reshape(-1, len(short))).flatten().index_select(0, order)
        return hadamard(spread)[: self.size]

    def adjoint(self, g: Tensor) -> Tensor:
        """P^T g: the same backwards."""
        flips, order, scales = self._drawn(g)
        spread = hadamard(F.pad(g, (0, self.length - self.size)))
        gathered = torch.empty_like(spread).index_copy_(0, order, spread) * scales
        short = gathered.reshape(-1, self.dimensions + self._padding).sum(0)
        return hadamard(short)[: self.dimensions] * flips

    def held_bytes(self, itemsize: int = 4) -> int:
        """B on the d dimensions, Pi and G."""
        return self.dimensions * itemsize + self.length * (8 + itemsize)

    @property
    def _padding(self) -> int:
        """Zeros behind the d dimensions up to a power of two."""
        return (1 << (self.dimensions - 1).bit_length()) - self.dimensions

    def _draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """B on the d dimensions, Pi, and c G."""
        counter = torch.arange(self.length, device=device)
        key = derive_key(self.seed, "", "projection-scales")
        scales = torch.cat([normal(key, block) for block in counter.split(DRAWN_AT_ONCE)])
        scales /= math.sqrt(self.size) * torch.linalg.vector_norm(scales)
        order = permutation(derive_key(self.seed, "", "projection"), self.length, device=device)
        flips = signs(derive_key(self.seed, "", "projection-signs"), self.dimensions, device=device)
        return flips.to(dtype), order, scales.to(dtype)
