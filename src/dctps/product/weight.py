"""W = alpha * D + S by its parts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dctps.offsets import Offset
from dctps.product.precision import compute_dtype


class Weight(NamedTuple):
    """A tuple, since autograd functions and operators take their tensors one by one.

    Attributes:
        values: (nnz,), the entries of S at the support.
        alpha: (1,), or None where there is no D.
        support: int64 (nnz,), sorted flat row-major positions in W.
        offset: D.
    """

    values: Tensor
    alpha: Tensor | None
    support: Tensor
    offset: Offset

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.offset.out_features, self.offset.in_features

    def combine(self, dense: Tensor) -> Tensor:
        """alpha * D + S, given D."""
        if self.alpha is not None:
            dense = self.alpha.to(dense.dtype) * dense
        values = self.values.to(dense.dtype)
        return dense.reshape(-1).index_add(0, self.support, values).reshape(dense.shape)

    def to_dense(self) -> Tensor:
        """W, in float64 if the values are, else in float32."""
        dtype = compute_dtype(self.values.dtype)
        return self.combine(self.offset.to_dense(dtype=dtype, device=self.values.device))


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
    return Weight(values, alpha, support, offset).to_dense()
