"""The images that a run trains on, chooses by and is tested on, and those that criteria look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dctps.counter import derive_key
from dctps.data import Dataset, ImageTensors, batches, first_of, split_validation
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.options import option_of_run
from dctps.experiments.scoring import ScoringBatches

_EVALUATION_BATCH = 500


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

    def training(
        self, data: ImageTensors, size: int, between: Callable[[], None], done: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, shuffled, after the first `done`; `between` is called before each."""
        for index, batch in enumerate(self._batches(data, size, between, self._augment, shuffle=True)):
            if index >= done:
                yield batch

    def evaluation(self, data: ImageTensors, between: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """All of `data`, in order and as they are; `between` is called before each batch."""
        return self._batches(data, _EVALUATION_BATCH, between, augment=False, shuffle=False)

    def _batches(
        self, data: ImageTensors, size: int, between: Callable[[], None], augment: bool, shuffle: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        choices = {"augment": augment, "shuffle": shuffle, **self._choices}
        for batch in batches(data, size, generator=self.generator, **choices):
            between()
            yield batch


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
    """What criteria look at, of the images that a run trains on."""
    per_class = option_of_run(config.options, "images_per_class")
    return ScoringBatches(train, config.seed, dataset.mean, dataset.std, per_class=per_class)
