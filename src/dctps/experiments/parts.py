"""The images of a run: for training, for choosing the best epoch, for the test, and for criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dctps.counter import derive_key, permutation
from dctps.data import Dataset, ImageTensors, batches, first_of, normalize, split_validation
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.options import option_of_run

_EVALUATION_BATCH, _SCORING_BATCH = 500, 128
Batches = Iterator[tuple[Tensor, Tensor]]


class Parts(NamedTuple):
    """A data set's images as a run takes them, on its device."""

    train: ImageTensors
    validation: ImageTensors
    test: ImageTensors


class Stream:
    """The batches of a run. Their order and augmentation do not depend on what the initialisation draws.

    Attributes:
        generator: of all random numbers in them.
    """

    def __init__(self, config: ResolvedConfig, dataset: Dataset) -> None:
        seed = config.seed if config.batch_seed is None else config.batch_seed
        self.generator = torch.Generator().manual_seed(derive_key(seed, "", "batches"))
        flip = dataset.flip if config.flip is None else config.flip
        self._choices: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "flip": flip}
        self._augment = config.augment

    def training(self, data: ImageTensors, size: int, between: Callable[[], None], done: int) -> Batches:
        """The batches of an epoch, shuffled, after the first `done`; `between` is called before each."""
        for index, batch in enumerate(self._batches(data, size, between, self._augment, shuffle=True)):
            if index >= done:
                yield batch

    def evaluation(self, data: ImageTensors, between: Callable[[], None]) -> Batches:
        """All of `data`, in order and as they are; `between` is called before each batch."""
        return self._batches(data, _EVALUATION_BATCH, between, augment=False, shuffle=False)

    def _batches(
        self, data: ImageTensors, size: int, between: Callable[[], None], augment: bool, shuffle: bool
    ) -> Batches:
        choices = {"augment": augment, "shuffle": shuffle, **self._choices}
        for batch in batches(data, size, generator=self.generator, **choices):
            between()
            yield batch


class ScoringBatches:
    """As many images of each class, normalised, not augmented, for criteria; others in each pass over them.

    Pass p takes the first `per_class` of each class (all of a class that has fewer) in the order of
    `counter.permutation` under the key (seed, "", "scoring p"), p = 0, 1, ..., and gives them in that order.
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

    def __iter__(self) -> Batches:
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
        for part in chosen.chunk(-(-len(chosen) // _SCORING_BATCH)):
            batch = self._train.select(part)
            yield normalize(batch.images, self._mean, self._std), batch.labels


def split(config: ResolvedConfig, dataset: Dataset, device: torch.device) -> Parts:
    """The parts of `dataset` that `config` trains, chooses and tests with."""
    held_out = round(config.validation_size * len(dataset.train))
    train, validation = split_validation(dataset.train, held_out, config.data_seed)
    train = first_of(train, config.train_images, config.data_seed, "train_images")
    judged = (
        first_of(p, config.eval_images, config.data_seed, "eval_images") for p in (validation, dataset.test)
    )
    return Parts(*(part.to(device) for part in (train, *judged)))


def scoring_batches(config: ResolvedConfig, train: ImageTensors, dataset: Dataset) -> ScoringBatches:
    """The images of the training set `train` that a run's criteria see."""
    per_class = option_of_run(config.options, "images_per_class")
    return ScoringBatches(train, config.seed, dataset.mean, dataset.std, per_class=per_class)
