"""The images that criteria score a network with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dctps.counter import derive_key, permutation
from dctps.data import ImageTensors
from dctps.data.augment import normalize

_BATCH = 128


class ScoringBatches:
    """As many images of each class, normalised, not augmented; others each time that they are gone through.

    Pass p takes the first of each class in the order of `counter.permutation` under the key
    (seed, "", "scoring p"), p = 0, 1, ..., and gives them in that order.

    Args:
        train: images to draw from.
        seed: of the draws.
        mean: for `normalize`.
        std: likewise.
        per_class: images of each class; all of a class that has fewer.
    """

    def __init__(
        self,
        train: ImageTensors,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        per_class: int = 10,
    ) -> None:
        self._train, self._seed, self._mean, self._std = train, seed, mean, std
        self._per_class, self._passes = per_class, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        key = derive_key(self._seed, "", f"scoring {self._passes}")
        self._passes += 1
        order = permutation(key, len(self._train))
        labels = self._train.labels.cpu()[order]
        by_class = labels.argsort(stable=True)
        counts = labels.bincount()
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        within = torch.empty_like(by_class)
        within[by_class] = torch.arange(len(labels), device=first.device) - first
        chosen = order[within < self._per_class]
        for part in chosen.chunk(-(-len(chosen) // _BATCH)):
            batch = self._train.select(part)
            yield normalize(batch.images, self._mean, self._std), batch.labels
