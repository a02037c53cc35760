"""How long an epoch of runs takes here, by trying some steps of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from dctps.data import Dataset, ImageTensors
from dctps.experiments.config import ResolvedConfig
from dctps.experiments.network import is_scored
from dctps.experiments.parts import split
from dctps.experiments.run import data_of
from dctps.experiments.session import Session
from dctps.experiments.settings import torch_settings
from dctps.stacks.stack import Stack
from dctps.sweeps.sweep import images_of

_STEPS = 4  # the first one warms up


class _Enough(Exception):  # noqa: N818
    """Ends an epoch once all steps of the trial are made."""


def time_epoch(
    *configs: ResolvedConfig,
    data_dir: Path | str | None = None,
    device: str = "auto",
    threads: int | None = None,
    dataset: Dataset | None = None,
) -> float:
    """Seconds that an epoch takes, training and evaluation, from steps that are made and thrown away.

    What a criterion takes before the first step is not counted: random supports stand for those that it would
    choose, and the dense network for those of imp's levels. Several runs are trained together, as one stack.
    `dataset` is that of the first where it is loaded already; other arguments and errors are those of `run`.
    """
    first = configs[0]
    with torch_settings(device, threads, first.seed) as chosen:
        data = dataset or data_of(first, data_dir, False, None)
        parts = split(first, data, chosen)
        sessions = [Session(_quick(config), data, chosen, parts=parts) for config in configs]
        stack = Stack([session.model for session in sessions]) if len(sessions) > 1 else None
        marks = [seconds for seconds, _ in _marks(lambda between: _train(sessions, stack, between))]
        steps = [after - before for before, after in pairwise(marks)]
        seconds = sessions[0].trainer.steps * statistics.median(steps[1:] or steps)
        judged = [part for part in (parts.validation, parts.test) if len(part)]
        return seconds + sum(_evaluation(sessions[0], stack, part) for part in judged)


def take_steps(session: Session) -> tuple[int, float, float]:
    """Make some steps of training: how many after the first, their seconds, and their seconds of the CPU."""
    marks = _marks(lambda between: session.train_epoch(progress=False, between=between))
    begin = 1 if len(marks) > 2 else 0
    (seconds, cpu), (last_seconds, last_cpu) = marks[begin], marks[-1]
    return len(marks) - 1 - begin, last_seconds - seconds, last_cpu - cpu


def _marks(train: Callable[[Callable[[], None]], object]) -> list[tuple[float, float]]:
    """Seconds, and seconds of the CPU, at the beginnings of the steps of `train` and after the last."""
    marks: list[tuple[float, float]] = []

    def between() -> None:
        marks.append((time.perf_counter(), time.process_time()))
        if len(marks) > _STEPS:
            raise _Enough

    with contextlib.suppress(_Enough):
        train(between)
        between()
    return marks


def _train(sessions: list[Session], stack: Stack | None, between: Callable[[], None]) -> None:
    """An epoch of training, as `Session.train_epoch` and `stacked` make it."""
    if stack is None:
        sessions[0].train_epoch(progress=False, between=between)
        return
    for images, labels in sessions[0].training_batches(between):
        losses = stack.step(images, labels)
        sums = zip(sessions, losses.loss.tolist(), losses.correct.tolist(), strict=True)
        for session, loss, correct in sums:
            session.take_step(loss, correct, len(labels))


def _evaluation(session: Session, stack: Stack | None, part: ImageTensors) -> float:
    """Seconds of the evaluation on all of `part`, from its first batch."""
    evaluate: Callable[..., object] = session.trainer.evaluate if stack is None else stack.evaluate
    seconds = []
    for batch in islice(session.evaluation_batches(part, lambda: None), 2):
        started = time.perf_counter()
        evaluate([batch])
        seconds.append((time.perf_counter() - started) / len(batch[1]))
    return len(part) * min(seconds)


def _quick(config: ResolvedConfig) -> ResolvedConfig:
    """A run whose epochs take as long and that begins at once."""
    if config.dynamics == "imp":
        return replace(
            config, method="dense", density=None, offset=None, allocation=None, criterion=None,
            dynamics=None, levels=None, rewind_epoch=None,
        )  # fmt: skip
    return replace(config, allocation="epl", criterion="random", options=()) if is_scored(config) else config


def timed(data_dir: Path | str | None, device: str, threads: int) -> Callable[..., float]:
    """A `trial` for `look_ahead`, of steps on this machine."""
    data: dict[tuple[Any, ...], Dataset] = {}

    def trial(*configs: ResolvedConfig) -> float:
        key = images_of(configs[0])
        if key not in data:
            data.clear()  # one data set at a time is held
            data[key] = data_of(configs[0], data_dir, False, None)
        return time_epoch(*configs, device=device, threads=threads, dataset=data[key])

    return trial
