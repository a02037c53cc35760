"""All that a run holds in memory: network, data, optimizer, schedule, and the stream of its batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dctps.counter import derive_key
from dctps.data import Dataset, ImageTensors, batches, split_validation
from dctps.experiments.config import RunConfig
from dctps.experiments.network import build_network
from dctps.training import (
    Metrics,
    Precision,
    build_optimizer,
    build_schedule,
    evaluate,
    parameter_groups,
    train_epoch,
)

_EVALUATION_BATCH = 500


class Session:
    """A run between its epochs.

    Args:
        config: resolved.
        dataset: of `config.dataset`.
        device: where the network and the data are to be.

    Raises:
        ValueError: a name or a choice in `config` that does not exist or does not fit.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device) -> None:
        self.config = config
        held_out = round(config.validation_size * len(dataset.train))
        train, validation = split_validation(dataset.train, held_out, config.data_seed)
        self._normalisation: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "flip": dataset.flip}
        self._train, self._validation = train.to(device), validation.to(device)
        self._test = dataset.test.to(device)
        # A stream of its own: the order and the augmentation do not depend on what initialisation draws.
        self._generator = torch.Generator().manual_seed(derive_key(config.seed, "", "batches"))

        self.model = build_network(config, dataset.classes, dataset.train.images.shape[1], device)
        self._precision = Precision(config.amp, device.type)
        groups = parameter_groups(
            self.model,
            config.weight_decay,
            decay_alpha=config.decay_alpha,
            decay_norm_bias=config.decay_norm_bias,
        )
        assert config.lr is not None, "resolve() fills it in"
        self._optimizer = build_optimizer(
            config.optimizer, groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        self._steps = math.ceil(len(train) / config.batch_size)
        self._schedule = build_schedule(
            config.schedule,
            self._optimizer,
            total_steps=config.epochs * self._steps,
            milestones=config.milestones,
        )

    def train_epoch(self, epoch: int, *, progress: bool) -> dict[str, Any]:
        """Train for one epoch, evaluate, and return the epoch's record for metrics.jsonl.

        Raises:
            NonFiniteLoss: see `dctps.training.train_epoch`.
        """
        started = time.perf_counter()
        lr = self._optimizer.param_groups[0]["lr"]
        # disable=None is tqdm's way to say: off where standard error is no terminal.
        bar = tqdm(
            self._batches(self._train, self.config.batch_size, training=True),
            desc=f"epoch {epoch}/{self.config.epochs}",
            total=self._steps,
            unit="step",
            leave=False,
            disable=None if progress else True,
        )
        train = train_epoch(
            self.model,
            bar,
            self._optimizer,
            self._schedule,
            epoch=epoch,
            precision=self._precision,
            clip_norm=self.config.clip_norm,
        )
        validation = self._evaluate(self._validation) if len(self._validation) else None
        return {
            "epoch": epoch,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": validation and validation.loss,
            "val_accuracy": validation and validation.accuracy,
            "test_accuracy": self.test().accuracy,
            "lr": lr,
            "seconds": time.perf_counter() - started,
        }

    def test(self) -> Metrics:
        """Evaluate on the test images."""
        return self._evaluate(self._test)

    def _evaluate(self, data: ImageTensors) -> Metrics:
        return evaluate(
            self.model, self._batches(data, _EVALUATION_BATCH, training=False), precision=self._precision
        )

    def _batches(self, data: ImageTensors, size: int, *, training: bool) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            data,
            size,
            generator=self._generator,
            shuffle=training,
            augment=training and self.config.augment,
            **self._normalisation,
        )
