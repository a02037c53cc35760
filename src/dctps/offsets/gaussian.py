"""A dense random offset: the incoherent extreme, without a fast transform."""

from __future__ import annotations

import torch
from torch import Tensor

from dctps.counter import derive_key, normal
from dctps.offsets.base import Offset
from dctps.offsets.registry import register_offset
from dctps.transforms.tables import exporting_to_onnx, making_constants

_BLOCK = 1 << 20  # entries drawn at once: bounds the float64 scratch to some tens of MB


@register_offset("gaussian")
class GaussianOffset(Offset):
    """Entries N(0, 1/n), entry i in row-major order from draw i of the key (seed, layer, "offset").

    Made anew for each call and dropped after it: O(m n) time, nothing stored. A program exported to ONNX,
    which has no normal quantile, holds it.
    """

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """D as a tensor of the weight's shape."""
        if exporting_to_onnx():
            with making_constants():
                return self._make(dtype, torch.device(device))
        return self._make(dtype, torch.device(device))

    def _make(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = derive_key(self.seed, self.layer, "offset")
        size = self.out_features * self.in_features
        dense = torch.empty(size, dtype=dtype, device=device)
        for start in range(0, size, _BLOCK):
            counter = torch.arange(start, min(start + _BLOCK, size), dtype=torch.int64, device=device)
            dense[start : start + _BLOCK] = normal(key, counter) * self.in_features**-0.5
        return dense.reshape(self.shape)
