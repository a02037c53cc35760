"""The state of a layer: values at a support, under an offset that the state names."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from dctps.identity.identified import Identified
from dctps.nn.guard import GuardedLayer
from dctps.offsets import Offset, ZeroOffset, offset_of


class SavedLayer(GuardedLayer, Identified[Offset]):
    """Values at a support, under an offset: the state has to fit, and says under which offset."""

    values: nn.Parameter
    support: Tensor

    @property
    def offset(self) -> Offset:
        """D, as the layer's state names it.

        Raises:
            ValueError: support or identity are not what this library has written.
        """
        return self._current()

    def _rebuild(self, spec: dict[str, Any]) -> Offset:
        try:
            offset = offset_of(json.dumps(spec))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the offset that the state names is unreadable ({error})") from None
        own = self.last_map
        if (offset.shape, offset.groups, isinstance(offset, ZeroOffset)) != (
            *(own.shape, own.groups),
            isinstance(own, ZeroOffset),
        ):
            raise ValueError(f"it holds {own!r}, the state names {offset!r}")
        return offset

    def _is_same(self, one: Offset, other: Offset) -> bool:
        # The paper's D has a seed in its spec and none in its entries.
        return one == other or torch.equal(one.to_dense(), other.to_dense())

    def _check_support(self, support: Tensor) -> None:
        size = math.prod(self.last_map.shape)
        if len(support) != self.nnz:
            raise ValueError(f"it has {self.nnz} values at {len(support)} positions")
        if len(support) and not (
            0 <= int(support[0]) <= int(support[-1]) < size and bool((support.diff() > 0).all())
        ):
            raise ValueError(
                f"its support is not sorted positions in 0..{size - 1}, each once: load the state again, or "
                f"sort support and values together"
            )

    @property
    def nnz(self) -> int:
        """Number of trained values."""
        return self.values.numel()

    def _incoming(self, state_dict: dict[str, Any], prefix: str) -> Offset | None:
        values, support = (state_dict.get(prefix + key) for key in ("values", "support"))
        if (values is None) != (support is None):
            raise ValueError("values and support belong together, one is missing")
        if isinstance(values, Tensor) and isinstance(support, Tensor):
            if values.shape != support.shape or support.dim() != 1 or support.dtype != torch.int64:
                raise ValueError(
                    f"{tuple(values.shape)} values at {support.dtype} {tuple(support.shape)} positions"
                )
            if len(values) != self.nnz:
                raise ValueError(
                    f"it has nnz={self.nnz}, the state dict {len(values)}: convert the network with the "
                    "density, allocation and seed of the one that was saved"
                )
            if not support.is_meta:
                self._check_support(support)
        return super()._incoming(state_dict, prefix)
