"""Small dense networks of about as many numbers as a sparse network trains: a rival for both.

    dctps sweep --plugin benchmarks/worth/thin.py --file benchmarks/worth/thin.toml --out runs/thin

A plain chain of 3x3 convolutions with BatchNorm, pooled between its stages; every number trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from dctps.models import register_model


class Thin(nn.Module):
    """Stages of convolutions of some widths, the mean over the pixels, and one linear classifier."""

    def __init__(
        self, classes: int, in_channels: int, image_size: int, *, stages: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, widths in enumerate(stages):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


# 497 and 1,250 numbers beside LeNet-5's 550 at 0.5% and 1,476 at 2%; 10,624 and 28,860 beside VGG19's 13,037
# at 0.01% and 31,059 at 0.1%.
for _name, _stages in {
    "thin-lenet-497": ((5,), (6,)),
    "thin-lenet-1250": ((8,), (12,)),
    "thin-vgg-10624": ((6, 6), (12, 12), (24, 24)),
    "thin-vgg-28860": ((10, 10), (20, 20), (40, 40)),
}.items():
    register_model(_name)(partial(Thin, stages=_stages))
