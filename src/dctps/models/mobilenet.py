"""MobileNetV2 for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dctps.models.layers import conv
from dctps.models.registry import register_model

# Outputs, blocks, stride of the first: fewer halvings than for large images.
_STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_EXPANSION = 6


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a 3x3 depthwise one, and a 1x1 one back, each with BatchNorm.

    At stride 1 the input is added, through a 1x1 convolution where the channels change.

    Args:
        inputs: channels.
        outputs: channels.
        expansion: the depthwise convolution has so many times the inputs.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.branch = nn.Sequential(
            conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
            conv(width, width, 3, stride, groups=width), nn.BatchNorm2d(width), nn.ReLU(),
            conv(width, outputs, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module | None = None
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif stride == 1:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, columns) -> (batch, outputs, rows / stride, columns / stride)."""
        branch: Tensor = self.branch(x)
        return branch if self.shortcut is None else branch + self.shortcut(x)


@register_model("mobilenetv2")
class MobileNetV2(nn.Module):
    """A 3x3 stem of 32 channels, 17 inverted residuals, a 1x1 convolution to 1280 and a linear classifier.

    All layers begin as torch's do.

    Args:
        classes: outputs.
        in_channels: of the images.
        image_size: any; the means over the pixels go into the classifier.

    Reference: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, with the
    strides, and the convolutions in shortcuts, of the usual code for CIFAR (kuangliu/pytorch-cifar).
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(in_channels, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        blocks, channels = [], 32
        for stage, (outputs, count, first_stride) in enumerate(_STAGES):
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, _EXPANSION if stage else 1, stride))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(conv(channels, 1280, 1), nn.BatchNorm2d(1280))
        self.classifier = nn.Linear(1280, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, in_channels, rows, columns)."""
        features = F.relu(self.head(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
