"""The images that a run trains on, chooses by and is tested on, and those that criteria look at."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dctps.data import Dataset, ImageTensors, first_of, split_validation
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.options import option_of_run
from dctps.experiments.scoring import ScoringBatches


class Parts(NamedTuple):
    """A data set's images as a run takes them, on its device."""

    train: ImageTensors
    validation: ImageTensors
    test: ImageTensors


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
