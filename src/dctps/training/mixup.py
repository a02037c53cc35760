"""Mixup: training on convex combinations of two images and of their labels.

Every number is drawn from the counter-based generator by (seed, epoch, step), so that a run that goes on,
or is shared by several processes, mixes as one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from dctps.counter import derive_key, permutation, uniform

_TRIES = 128


@dataclass(frozen=True)
class Mixup:
    """x = w x_i + (1 - w) x_j with w ~ Beta(alpha, alpha), one w for each batch, j a permutation of i.

    Exchanging the two halves of every pair changes nothing, so w is the larger of w and 1 - w.

    Args:
        alpha: in (0, 4]; 1 draws w uniformly, smaller ones mix less.
        seed: of all draws.

    Reference: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    alpha: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 4:
            raise ValueError(f"mixup's alpha must be in (0, 4], got {self.alpha}; for instance 1")

    def __call__(
        self, images: Tensor, labels: Tensor, *, epoch: int, step: int
    ) -> tuple[Tensor, Tensor, float]:
        """Mix a batch of floating-point images; the draws are keyed by the epoch of the run and its step.

        The mixed images, the labels of the images with the smaller weight, and the larger weight come back.
        """
        weight = self.weight(epoch, step)
        order = permutation(derive_key(self.seed, f"{epoch}/{step}", "mixup-order"), len(labels))
        order = order.to(labels.device, non_blocking=True)
        return torch.lerp(images[order], images, weight), labels[order], weight

    def weight(self, epoch: int, step: int) -> float:
        """The larger of w and 1 - w, w ~ Beta(alpha, alpha), by Jöhnk's rejection from pairs of uniforms."""
        key = derive_key(self.seed, f"{epoch}/{step}", "mixup-weight")
        for block in count():
            counter = torch.arange(2 * _TRIES, device="cpu") + 2 * _TRIES * block
            # u^(1/alpha) underflows for a small alpha, its logarithm does not.
            logs = uniform(key, counter).log().div(self.alpha).view(_TRIES, 2)
            total = torch.logaddexp(logs[:, 0], logs[:, 1])
            accepted = (total <= 0).nonzero()
            if len(accepted):
                first = int(accepted[0])
                return float((logs[first].max() - total[first]).exp())
        raise AssertionError("unreachable")
