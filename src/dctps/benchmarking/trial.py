"""What a training step of a run takes here, by trying some steps of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from dctps.experiments.config import RunConfig
from dctps.experiments.run import data_of
from dctps.experiments.session import Session
from dctps.experiments.settings import torch_settings

_STEPS = 4  # the first one warms up


class _Enough(Exception):  # noqa: N818
    """The trial has seen all its steps."""


def time_step(session: Session) -> tuple[float, float]:
    """Seconds, and seconds of the CPU, of a training step; the session is afterwards some steps on."""
    marks: list[tuple[float, float]] = []

    def between() -> None:
        marks.append((time.perf_counter(), time.process_time()))
        if len(marks) > _STEPS:
            raise _Enough

    with contextlib.suppress(_Enough):
        session.train_epoch(progress=False, between=between)
    (wall, cpu), (last_wall, last_cpu) = marks[1], marks[-1]
    steps = max(len(marks) - 2, 1)
    return (last_wall - wall) / steps, (last_cpu - cpu) / steps


def time_epoch(
    config: RunConfig, *, data_dir: Path | str | None = None, device: str = "auto", threads: int | None = None
) -> float:
    """Seconds that an epoch's training steps take, from some that are made and thrown away.

    Evaluation is not counted: it adds a forward pass over the validation and test images.

    Args:
        config: resolved.
        data_dir: as for `dctps.experiments.run.run`.
        device: as for `dctps.experiments.run.run`.
        threads: as for `dctps.experiments.run.run`.

    Raises:
        ValueError: a choice in `config` that does not fit.
        DataError: the data files are missing or damaged.
    """
    with torch_settings(device, threads, config.seed) as place:
        session = Session(config, data_of(config, data_dir, False, None), place)
        return session.steps_per_epoch * time_step(session)[0]
