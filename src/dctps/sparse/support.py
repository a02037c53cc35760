"""Supports: which entries of a weight may move. Sorted flat row-major positions, int64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from dctps.arguments import real
from dctps.counter import derive_key, sample


def budget(density: float, size: int) -> int:
    """K = round(density * size), half to even, of the decimal number that the user wrote.

    Args:
        density: fraction of the weights in [0, 1].
        size: number of weights.

    Raises:
        ValueError: the density is outside [0, 1].
    """
    density = real("density", density, finite=False)
    if not 0 <= density <= 1:
        raise ValueError(
            f"density must be in [0, 1], got {density}: it is the fraction of weights that train"
        )
    # The float 0.1 lies a little above a tenth; its shortest decimal does not, so that ties are ties.
    return round(Fraction(str(density)) * size)


def random_support(size: int, nnz: int, *, seed: int = 0, layer: str = "") -> Tensor:
    """`nnz` positions out of `size`, drawn without replacement in O(nnz) by the key (seed, layer, "support").

    Args:
        size: number of weights.
        nnz: how many of them to draw.
        seed: any integer.
        layer: qualified name of the layer.

    Returns:
        int64 (nnz,), sorted, on the CPU; the same on every machine.

    Raises:
        ValueError: nnz is not within 0..size.
    """
    return sample(derive_key(seed, layer, "support"), nnz, size, device="cpu")


def check_support(support: Tensor, shape: Sequence[int]) -> Tensor:
    """A user's mask or positions as a support.

    Args:
        support: a bool mask of the weight's shape, or integer flat positions in any order.
        shape: of the weight.

    Returns:
        int64 (nnz,), sorted, on the device of `support`.

    Raises:
        ValueError: a mask of another shape, positions out of range or named twice, or another dtype.
    """
    size = math.prod(shape)
    if support.dtype == torch.bool:
        if support.shape != torch.Size(shape):
            raise ValueError(f"the mask has shape {tuple(support.shape)}, the weight {tuple(shape)}")
        return support.flatten().nonzero().squeeze(1)
    if support.is_floating_point() or support.is_complex() or support.dim() != 1:
        raise ValueError(
            "a support is a bool mask of the weight's shape or a 1-D tensor of integer positions, "
            f"got {support.dtype} of shape {tuple(support.shape)}"
        )
    ordered = support.long().sort().values
    if len(ordered) and (ordered[0] < 0 or ordered[-1] >= size):
        raise ValueError(
            f"positions must be in 0..{size - 1} for a weight of shape {tuple(shape)}, "
            f"got {int(ordered[0])}..{int(ordered[-1])}"
        )
    if bool((ordered[1:] == ordered[:-1]).any()):
        twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
        raise ValueError(f"position {twice} is named more than once in the support")
    return ordered
