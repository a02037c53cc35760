"""VGG networks with BatchNorm for small images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from dctps.initial import ZEROS, Law, set_laws
from dctps.models.layers import kaiming_conv
from dctps.models.registry import register_model

_WIDTHS = (64, 128, 256, 512, 512)
_POOLINGS = len(_WIDTHS) - 1


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with BatchNorm, max-pooling between them, and one linear classifier.

    Convolutions have no bias and begin with N(0, 2 / fan_out), the classifier with N(0, 0.01^2) and bias 0.

    Args:
        classes: outputs.
        in_channels: of the images.
        image_size: 16 pixels or more; the means over the pixels go into the classifier.
        convolutions: for each stage, of 64, 128, 256, 512 and 512 channels.

    Raises:
        ValueError: smaller images.

    Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    ICLR 2015, in the form of the pruning literature (de Jorge et al., FORCE, ICLR 2021).
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        convolutions: Sequence[int] = (2, 2, 4, 4, 4),
    ) -> None:
        super().__init__()
        if image_size < 2**_POOLINGS:
            raise ValueError(
                f"VGG halves its images {_POOLINGS} times, too often for {image_size} pixels: "
                f"give it {2**_POOLINGS} or more"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (width, count) in enumerate(zip(_WIDTHS, convolutions, strict=True)):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [kaiming_conv(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        set_laws(self.classifier, weight=Law("normal", 0.01), bias=ZEROS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, in_channels, rows, columns)."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


for _name, _convolutions in {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    register_model(_name)(partial(VGG, convolutions=_convolutions))
