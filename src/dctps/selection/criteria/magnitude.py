"""Magnitude: the weight's own size."""

from __future__ import annotations

from torch import Tensor, nn

from dctps.selection.criteria.registry import Batches, Layers, Loss, register_criterion


@register_criterion("magnitude")
def magnitude(model: nn.Module, layers: Layers, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """`|w|`. Neither loss nor batches are looked at."""
    return {name: layer.get_parameter("weight").detach().abs() for name, layer in layers.items()}
