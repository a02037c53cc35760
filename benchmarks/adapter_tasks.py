"""Pretrained networks and what they are adapted to, for `benchmarks/adapters.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from adapter_images import Images
from adapter_pitch import Pitch
from adapter_text import Gpt2, Text
from torch import Tensor, nn

Batch = Any


class Task(Protocol):
    """What an adapter is measured on; `score` is better the larger it is."""

    name: str
    targets: str | list[str]
    saved: list[str]
    r: int
    settings: dict[str, Any]

    def base(self, seed: int) -> nn.Module:
        """The pretrained network, ready to be adapted."""

    def batches(self, seed: int) -> Iterator[Batch]:
        """All that a run trains on."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """In nats."""

    def scores(self, model: nn.Module) -> dict[str, float]:
        """By part of the data: `validation` and `test`."""


TASKS = {"images": Images, "text": Text, "gpt2": Gpt2, "pitch": Pitch}
