"""What the convolutional networks have in common."""

from __future__ import annotations

from torch import nn

from dctps.initial import kaiming_normal, set_laws


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias whose padding keeps the size at stride 1, initialised as torch does."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def kaiming_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """`conv`, initialised with N(0, 2 / fan_out), fan_out = outputs * kernel * kernel."""
    layer = conv(inputs, outputs, kernel, stride)
    set_laws(layer, weight=kaiming_normal(outputs * kernel * kernel))
    return layer
