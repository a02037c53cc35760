"""No offset: a plain sparse layer."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.kernels import Filters
from dctps.offsets.base import Offset
from dctps.offsets.registry import register_offset


@register_offset("zero")
class ZeroOffset(Offset):
    """D = 0. A layer under it has no alpha, and trains S alone."""

    @property
    def row_cost(self) -> float:
        """Nothing to do."""
        return 0.0

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Zeros of the weight's shape."""
        return torch.zeros(self.shape, dtype=dtype, device=device)

    def apply(self, x: Tensor) -> Tensor:
        """Zeros, (*, m)."""
        return x.new_zeros(*x.shape[:-1], self.out_features)

    def adjoint(self, y: Tensor) -> Tensor:
        """Zeros, (*, groups * n)."""
        return y.new_zeros(*y.shape[:-1], self.groups * self.in_features)

    @property
    def has_filters(self) -> bool:
        """Any convolution: there are none."""
        return len(self.shape) == 4

    @property
    def filter_cost(self) -> float:
        """Nothing to do."""
        return 0.0

    def filters(self) -> Filters:
        """No terms."""
        return Filters(0)

    @property
    def has_factors(self) -> bool:
        """There are none to give."""
        return True

    def norm(self) -> float:
        """0."""
        return 0.0
