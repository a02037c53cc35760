"""Mean and standard deviation of pixels, from exact counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1024  # images: the counts of a million pixels or so at a time


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, pixels scaled to [0, 1].

    From a histogram of the 256 values and integer sums over it, so that they depend on nothing but the
    pixels: neither on the machine nor on the order of the images.

    Args:
        images: uint8, (n, channels, height, width), n >= 1.

    Returns:
        The means, and the deviations; of a constant channel 1, so that it can be divided by.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device="cpu")
        for chunk in images.split(_CHUNK):
            counts += torch.bincount(chunk[:, channel].reshape(-1), minlength=256).cpu()
        histogram = counts.tolist()
        n = sum(histogram)
        first = sum(value * count for value, count in enumerate(histogram))
        second = sum(value * value * count for value, count in enumerate(histogram))
        means.append(first / (255 * n))
        deviations.append(math.sqrt(n * second - first**2) / (255 * n) or 1.0)
    return tuple(means), tuple(deviations)
