"""What a layer's state dict holds beside its tensors, and which state dicts a layer refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn.guard import GuardedLayer
from dctps.offsets import Offset, ZeroOffset, build_offset


class SavedLayer(GuardedLayer):
    """Values at a support, under an offset: state dicts have the offset's spec, and have to fit."""

    values: nn.Parameter
    support: Tensor
    offset: Offset

    def get_extra_state(self) -> Tensor:
        """The offset's spec, as the bytes of a JSON text: values and support mean nothing under another D."""
        return torch.frombuffer(bytearray(json.dumps(self.offset.spec).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the offset of a state dict, so that W is what it was where the state was saved.

        Raises:
            ValueError: no spec of an offset that fits this layer.
        """
        try:
            spec = json.loads(bytes(state.tolist()))
            offset = build_offset(**spec)
            fits = (offset.shape, offset.groups) == (self.offset.shape, self.offset.groups)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"layer {self.offset.layer!r}: the state dict's offset is unreadable ({error})"
            ) from None
        if not fits or isinstance(offset, ZeroOffset) != isinstance(self.offset, ZeroOffset):
            raise ValueError(f"layer {self.offset.layer!r} holds {self.offset!r}, the state dict {offset!r}")
        if offset != self.offset:
            self.offset = offset

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuse a support that is not this layer's to take, saying what to do; then load as any module."""
        problem = self._misfit(state_dict.get(prefix + "values"), state_dict.get(prefix + "support"))
        if problem is not None:
            error_msgs.append(f"layer {prefix[:-1]!r}: {problem}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _misfit(self, values: Any, support: Any) -> str | None:
        if not isinstance(values, Tensor) or not isinstance(support, Tensor):
            return (
                "values and support belong together, one is missing"
                if (values is None) != (support is None)
                else None
            )
        size = math.prod(self.offset.shape)
        if values.shape != support.shape or support.dim() != 1 or support.dtype != torch.int64:
            return f"{tuple(values.shape)} values at {support.dtype} {tuple(support.shape)} positions"
        if len(values) != len(self.values):
            return (
                f"it has nnz={len(self.values)}, the state dict {len(values)}: convert the network with "
                "the density, allocation and seed of the one that was saved"
            )
        if support.is_meta or not len(support):
            return None
        if not 0 <= int(support[0]) <= int(support[-1]) < size or not bool((support.diff() > 0).all()):
            return f"the support is not sorted positions in 0..{size - 1}: was it averaged or cast?"
        return None
