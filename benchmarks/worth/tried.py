"""What did not gain: where the values of S are, as a dense block or mostly in front, and scales of D's rows.

dctps sweep --plugin benchmarks/worth/tried.py --file benchmarks/worth/tried.toml --out runs/tried
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from dctps import register_allocation, register_criterion
from dctps.models import register_model
from dctps.models.lenet import LeNet5
from dctps.selection.allocation import Shape, share_out
from dctps.selection.criteria.registry import Batches, Layers, Loss


@register_criterion("block")
def block(model: nn.Module, layers: Layers, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """The first channels in and out of each layer, as many of each: a small dense network."""
    scores = {}
    for name, layer in layers.items():
        shape = layer.get_parameter("weight").shape
        farther = torch.maximum(torch.arange(shape[0])[:, None], torch.arange(shape[1]))
        scores[name] = (
            (1 / (1 + farther)).reshape(*farther.shape, *[1] * (len(shape) - 2)).repeat(1, 1, *shape[2:])
        )
    return scores


@register_allocation("front")
def front(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """Shares that fall with the channels of a layer, which rise from the first layer to the last."""
    return share_out({name: Fraction(1, max(shape[:2])) for name, shape in shapes.items()}, shapes, total)


class Scaled(nn.Module):
    """diag(a) (W x + b), a begins at 1 and trains."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        self.scale = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """a = 1; of a model on the meta device it is called once its tensors are there."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of x."""
        y: Tensor = self.layer(x)
        return y * self.scale.view(-1, *[1] * (y.dim() - 2))


@register_model("lenet5-scaled")
def lenet5_scaled(classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """LeNet-5 with a scale for each output: 236 numbers, in place of as many values of S."""
    network = LeNet5(classes, in_channels, image_size)
    for part in (network.features, network.classifier):
        for index, layer in enumerate(part):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                part[index] = Scaled(layer)
    return network
