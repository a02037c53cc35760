"""Fastfood: a structured Gaussian projection, in O(D log D) time and O(D) memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.counter import derive_key, normal, permutation, signs
from dctps.subspace.projection import DRAWN_AT_ONCE, Projection, register_projection
from dctps.transforms import hadamard


@register_projection("fastfood")
class FastfoodProjection(Projection):
    """P = c (H Pi G H B)[:D, :d], L = 2^ceil(log2 D), c = 1 / sqrt(D sum_i G_i^2); never stored.

    H is Sylvester's Hadamard matrix of size L, B signs (key "projection-signs"), G normal numbers (key
    "projection-scales"), Pi a permutation (key "projection": (Pi x)_i = x at the i-th place of it). Held
    are those three, O(L). A column of the whole L x L matrix has the norm sqrt(L sum G^2) exactly; of its
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
        # The transform of a vector with zeros behind its first 2^b places repeats that of those places.
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
