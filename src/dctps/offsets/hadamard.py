"""A randomised Hadamard offset: additions only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.counter import derive_key, permutation, signs
from dctps.gpu.products import Products
from dctps.offsets.base import Offset
from dctps.offsets.factors import Factors
from dctps.offsets.products import hadamard_products, outputs_of, sides
from dctps.offsets.registry import register_offset
from dctps.transforms import hadamard, hadamard_matrix, hadamard_rows
from dctps.transforms.tables import shape_table


@register_offset("hadamard")
class HadamardOffset(Offset):
    """D = n^(-1/2) H[rows, :n] diag(signs), H Sylvester's matrix of the next power of two q >= max(m, n).

    The m rows are the first of a permutation of q keyed (seed, layer, "offset"), the n signs are keyed
    (seed, layer, "offset-signs"), and every row of D has norm 1. Groups take their own rows, and
    share the signs. Inputs are read in torch's order.
    """

    draws = 2

    @property
    def size(self) -> int:
        """q: the transform's length, a power of two."""
        return 1 << (max(self.out_features, self.in_features) - 1).bit_length()

    @property
    def row_cost(self) -> float:
        """A few small matrix products."""
        return 2.0 * self.groups * self.size

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """D as a tensor of the weight's shape."""
        rows, flips = self._drawn(torch.device(device))
        n = self.in_features
        blocks = hadamard_rows(rows.long(), -(-n // self._fine), self._fine, dtype=dtype)
        return (blocks.flatten(1)[:, :n] * self._scaled(flips, dtype)).reshape(self.shape)

    def apply(self, x: Tensor) -> Tensor:
        """D x by one Hadamard transform of length q for each group."""
        rows, flips = self._drawn(x.device)
        patches = x.unflatten(-1, (self.groups, -1)) * self._scaled(flips, x.dtype)
        spectrum = hadamard(F.pad(patches, (0, self.size - self.in_features)))
        return spectrum.flatten(-2).index_select(-1, self._positions(rows))

    def adjoint(self, y: Tensor) -> Tensor:
        """D^T y by one Hadamard transform of length q for each group."""
        rows, flips = self._drawn(y.device)
        spectrum = y.new_zeros(*y.shape[:-1], self.groups * self.size)
        spectrum = spectrum.index_copy(-1, self._positions(rows), y)
        patches = hadamard(spectrum.unflatten(-1, (self.groups, -1)))[..., : self.in_features]
        return (patches * self._scaled(flips, y.dtype)).flatten(-2)

    @property
    def has_factors(self) -> bool:
        """Any layer."""
        return True

    def factors(self, *, dtype: torch.dtype, device: torch.device) -> Factors:
        """By H's Kronecker structure, of two smaller matrices."""
        n, fine = self.in_features, self._fine
        high, low, signs = self._derived("factors", device, lambda: self._choices(device))
        left = _leading_columns((self.size // fine, -(-n // fine)), dtype, device)[:, :, None]
        right = _unit_matrix((fine, n), dtype, device)[:, None]
        return Factors(left, right, high, low, signs, channels_last=False)

    @property
    def sides(self) -> tuple[int, int] | None:
        """Of q, on rows."""
        return sides(self.size) if self.groups == math.prod(self.shape[2:]) == 1 else None

    def products(self, device: torch.device) -> Products:
        """One transform of the inputs under their signs, and its entries at the drawn rows."""
        rows, flips = self._drawn(device)
        first, last = hadamard_products(self.size, self.in_features, device)
        size = first.shape[-1], last.shape[-1]
        return Products(size, first, None, last, flips[None], outputs_of(rows, 1, self.size))

    def _choices(self, device: torch.device) -> tuple[Tensor, ...]:
        """Each output's rows of the two matrices, and the signs of the inputs."""
        rows, flips = self._drawn(device)
        return rows // self._fine, rows % self._fine, flips[None]

    @property
    def _fine(self) -> int:
        """The size of the smaller matrix whose columns follow each other."""
        return 1 << (math.isqrt(self.in_features - 1)).bit_length()

    def norm(self) -> float:
        """sqrt(m): every row has norm 1."""
        return math.sqrt(self.out_features)

    def _draw(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows of H, and the signs of the inputs."""
        rows = permutation(derive_key(self.seed, self.layer, "offset"), self.size, device=device)
        flips = signs(derive_key(self.seed, self.layer, "offset-signs"), self.in_features, device=device)
        return rows[: self.out_features].int(), flips.to(torch.int8)

    def _positions(self, rows: Tensor) -> Tensor:
        """Where each output lies among the transforms of all groups."""
        group = torch.arange(len(rows), dtype=torch.int64, device=rows.device) // (len(rows) // self.groups)
        return group * self.size + rows

    def _scaled(self, flips: Tensor, dtype: torch.dtype) -> Tensor:
        """The signs, scaled so that D's rows have norm 1."""
        return flips.to(dtype) / math.sqrt(self.in_features)


@shape_table
def _unit_matrix(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """H of size `fine`, scaled so that D's rows on n inputs have norm 1."""
    fine, n = size
    return hadamard_matrix(fine, dtype, device) / math.sqrt(n)


@shape_table
def _leading_columns(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first columns of H of a size."""
    rows, columns = size
    return hadamard_matrix(rows, dtype, device)[:, :columns].contiguous()
