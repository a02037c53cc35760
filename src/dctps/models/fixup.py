"""Residual networks without normalisation, which train because of how they begin.

Reference: Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019,
in the layout of its authors' code for CIFAR (hongyi-zhang/Fixup).
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.initial import ZEROS, Law, set_laws
from dctps.models.layers import conv
from dctps.models.registry import register_model


class FixupBlock(nn.Module):
    """relu(scale * conv2(relu(conv1(x + b1a) + b1b) + b2a) + b2b + shortcut), with scalar biases.

    conv1 begins with N(0, 2 / (fan_out * branches)), conv2 with zeros. Where the shape changes the shortcut
    is every second pixel of x + b1a, with zeros for the other half of the channels.

    Args:
        inputs: channels.
        outputs: channels; inputs, or twice as many, and then the image is halved.
        branches: residual branches of the whole network.

    Attributes:
        lr_scales: see `dctps.training.parameter_groups`.
    """

    lr_scales: ClassVar[dict[str, float]] = dict.fromkeys(
        ("bias1a", "bias1b", "bias2a", "bias2b", "scale"), 0.1
    )

    def __init__(self, inputs: int, outputs: int, branches: int) -> None:
        super().__init__()
        self.halves = inputs != outputs
        self.conv1 = conv(inputs, outputs, 3, 2 if self.halves else 1)
        self.conv2 = conv(outputs, outputs, 3)
        set_laws(self.conv1, weight=Law("normal", math.sqrt(2 / (9 * outputs * branches))))
        set_laws(self.conv2, weight=ZEROS)
        self.bias1a, self.bias1b, self.bias2a, self.bias2b, self.scale = (
            nn.Parameter(torch.empty(1)) for _ in self.lr_scales
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Biases 0, scale 1."""
        for bias in (self.bias1a, self.bias1b, self.bias2a, self.bias2b):
            bias.zero_()
        self.scale.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, columns) -> (batch, outputs, rows, columns), halved if inputs != outputs."""
        shifted = x + self.bias1a
        hidden = F.relu(self.conv1(shifted) + self.bias1b)
        branch = self.scale * self.conv2(hidden + self.bias2a) + self.bias2b
        if self.halves:
            x = shifted[:, :, ::2, ::2]
            x = torch.cat((x, torch.zeros_like(x)), 1)
        return F.relu(branch + x)


class FixupResNet(nn.Module):
    """A 3x3 stem, three stages of 16, 32 and 64 channels, and a linear classifier that begins with zeros.

    The stem begins as torch's convolutions do.

    Args:
        classes: outputs.
        in_channels: of the images.
        image_size: any; the means over the pixels go into the classifier.
        blocks: for each stage, of two layers each.

    Attributes:
        lr_scales: see `dctps.training.parameter_groups`.
    """

    lr_scales: ClassVar[dict[str, float]] = {"bias1": 0.1, "bias2": 0.1, "classifier.bias": 0.1}

    def __init__(
        self, classes: int = 10, in_channels: int = 3, image_size: int = 32, *, blocks: int = 3
    ) -> None:
        super().__init__()
        self.stem = conv(in_channels, 16, 3)
        stages, channels = [], 16
        for width in (16, 32, 64):
            inputs = [channels] + [width] * (blocks - 1)
            stages.append(nn.Sequential(*(FixupBlock(n, width, 3 * blocks) for n in inputs)))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)
        set_laws(self.classifier, weight=ZEROS, bias=ZEROS)
        self.bias1, self.bias2 = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Biases 0."""
        self.bias1.zero_()
        self.bias2.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, in_channels, rows, columns)."""
        features = self.stages(F.relu(self.stem(images) + self.bias1))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)) + self.bias2)
        return logits


for _depth in (20, 32, 44, 56, 110):
    register_model(f"fixup-resnet{_depth}")(partial(FixupResNet, blocks=(_depth - 2) // 6))
