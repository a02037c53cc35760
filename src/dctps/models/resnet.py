"""Residual networks with BatchNorm: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

Those with four stages begin with a 3x3 convolution of stride 1 and no max-pooling, as is usual on small
images; `resnet110` is the bottleneck network of FORCE and of "Dense for the Price of Sparse". Those with
three are He et al.'s own for CIFAR (section 4.2), with shortcuts that have no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dctps.models.layers import kaiming_conv
from dctps.models.registry import register_model


def _branch(*widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Convolutions (inputs, outputs, kernel, stride) with BatchNorm, and ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in widths:
        layers += [kaiming_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are missing: He et al.'s option A."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, columns) -> (batch, outputs, rows / stride, columns / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)): two 3x3 convolutions, or as a bottleneck 1x1, 3x3, 1x1 to four times.

    Args:
        inputs: channels.
        width: of the 3x3 convolutions.
        stride: of the (first) 3x3 convolution.
        bottleneck: which of the two.
        projected: whether a shortcut between different shapes is a 1x1 convolution, or padded.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, bottleneck: bool, projected: bool = True
    ) -> None:
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.branch = _branch(
                (inputs, width, 1, 1), (width, width, 3, stride), (width, self.outputs, 1, 1)
            )
        else:
            self.branch = _branch((inputs, width, 3, stride), (width, width, 3, 1))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != self.outputs:
            if projected:
                self.shortcut = _branch((inputs, self.outputs, 1, stride))
            else:
                self.shortcut = PaddedShortcut(inputs, self.outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, columns) -> (batch, outputs, rows / stride, columns / stride)."""
        return F.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, each but the first halving the image, and a linear classifier.

    Convolutions begin with N(0, 2 / fan_out), the classifier as torch's do.

    Args:
        classes: outputs.
        in_channels: of the images.
        image_size: any; the means over the pixels go into the classifier.
        blocks: for each stage.
        width: of the first stage; each further one has twice the last one's.
        bottleneck: see `ResidualBlock`.
        projected: see `ResidualBlock`.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        bottleneck: bool = False,
        projected: bool = True,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(kaiming_conv(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = ResidualBlock(
                    channels, width << stage, stride, bottleneck=bottleneck, projected=projected
                )
                layers.append(block)
                channels = block.outputs
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, in_channels, rows, columns)."""
        features = self.stages(self.stem(images))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


register_model("resnet18")(ResNet)
register_model("resnet34")(partial(ResNet, blocks=(3, 4, 6, 3)))
for _name, _blocks in {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet110": (3, 4, 26, 3),
    "resnet152": (3, 8, 36, 3),
}.items():
    register_model(_name)(partial(ResNet, blocks=_blocks, bottleneck=True))
for _name, _count in {
    "resnet20": 3,
    "resnet32": 5,
    "resnet44": 7,
    "resnet56": 9,
    "resnet110-basic": 18,
}.items():
    register_model(_name)(partial(ResNet, blocks=(_count,) * 3, width=16, projected=False))
