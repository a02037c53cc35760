"""A sweep: many runs, each in a folder of its own under one roof.

A sweep has no state of its own. What is finished, begun or missing is read from the run folders, so that one
that was killed, or to which runs were added, goes on by the same command, and several may work on the same
folder.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dctps.benchmarking.trial import time_epoch
from dctps.experiments.config import RunConfig, total_epochs
from dctps.experiments.folder import METRICS, RunFolder
from dctps.experiments.tensorboard import write_events
from dctps.sweeps.events import Busy, Epoch, Executor, Failed, Finished, Job
from dctps.sweeps.grid import Runs
from dctps.sweeps.workers import execute


@dataclass(frozen=True)
class Outlook:
    """What a sweep has before it.

    Attributes:
        finished: names of the runs that are done.
        begun: names of those that were cut short and go on where they were saved.
        missing: names of the others.
        epochs: left of all.
        seconds: that these take on one worker; None if unknown.
    """

    finished: list[str]
    begun: list[str]
    missing: list[str]
    epochs: int
    seconds: float | None = None

    def __str__(self) -> str:
        runs = len(self.finished) + len(self.begun) + len(self.missing)
        text = (
            f"{runs} runs: {len(self.finished)} finished, {len(self.begun)} begun, "
            f"{len(self.missing)} to begin; {self.epochs} epochs left"
        )
        return text if not self.seconds else f"{text}, about {_in_words(self.seconds)} on one worker"


@dataclass
class SweepResult:
    """How a sweep ended.

    Attributes:
        finished: names of the runs that are done.
        failed: of the others by name, what went wrong.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def look_ahead(runs: Runs, out: Path | str, *, trial: Callable[[RunConfig], float] | None = None) -> Outlook:
    """What is left of a sweep, and how long it will take.

    A run's epochs take as long as the median of those that runs with the same network, data and method in
    this folder have recorded; where there is none, as long as `trial` says.

    Args:
        runs: by name, from `grid`.
        out: folder of the sweep.
        trial: seconds of an epoch of a run, by trying some steps of it (None: no trials).

    Raises:
        ValueError: as `RunFolderError`, one of the run folders holds something else.
    """
    out = Path(out)
    seconds = {name: _epoch_seconds(out / name) for name in runs}
    finished = [name for name, config in runs.items() if RunFolder(out / name, config).finished() is not None]
    left = {name: config for name, config in runs.items() if name not in finished}
    epochs = {name: total_epochs(config) - len(seconds[name]) for name, config in left.items()}

    recorded: dict[tuple[str, ...], list[float]] = {}
    for name, config in runs.items():
        recorded.setdefault(_kind(config), []).extend(seconds[name])
    per_epoch = {kind: statistics.median(those) for kind, those in recorded.items() if those}
    for config in left.values():
        if trial is not None and _kind(config) not in per_epoch:
            per_epoch[_kind(config)] = trial(config)
    known = all(_kind(config) in per_epoch for config in left.values())
    return Outlook(
        finished,
        [name for name in left if seconds[name]],
        [name for name in left if not seconds[name]],
        sum(epochs.values()),
        sum(epochs[name] * per_epoch[_kind(config)] for name, config in left.items()) if known else None,
    )


def run_sweep(
    runs: Runs,
    out: Path | str,
    *,
    workers: int = 1,
    threads: int = 1,
    data_dir: Path | str | None = None,
    device: str = "auto",
    progress: bool = False,
    tensorboard: bool = False,
    on_note: Callable[[str], None] | None = None,
    executor: Executor = execute,
) -> SweepResult:
    """Do what is left of a sweep: skip what is finished, resume what is broken, go on where a run fails.

    Args:
        runs: by name, from `grid`.
        out: folder of the sweep; each run goes into the folder of its name there.
        workers: runs at a time, each in a process of its own.
        threads: CPU threads of each run, which repeats bit for bit at one number, whatever `workers` is.
        data_dir: as for `dctps.experiments.run.run`.
        device: as for `dctps.experiments.run.run`; several runs may share one GPU.
        progress: show a bar over all epochs, with the time left, where standard error is a terminal.
        tensorboard: write each run's metrics as events for TensorBoard too, also of the finished ones.
        on_note: called with a line for a person when a run ends.
        executor: does the jobs, so many at a time; `workers.execute` is the one for this machine, and
            `dctps.stacks.on_ray()` makes one for Ray.

    Returns:
        what is finished, and the error of each run that failed, which the next call tries again.

    Raises:
        ValueError: fewer than one worker or thread; TensorBoard is missing; as `RunFolderError`, a folder
            that holds something else.
        KeyboardInterrupt: after SIGINT, or as `Stopped` after SIGTERM; the runs under way are saved.
    """
    if min(workers, threads) < 1:
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    note = on_note or (lambda line: None)
    out = Path(out)
    outlook = look_ahead(runs, out)
    place: dict[str, Any] = {"data_dir": data_dir, "device": device, "threads": threads}
    jobs = [Job(name, runs[name], out / name, place) for name in outlook.begun + outlook.missing]
    result = SweepResult(finished=outlook.finished)
    if tensorboard:
        for name in runs:
            write_events(out / name)
    # disable=None is tqdm's way to say: off where standard error is no terminal.
    bar = tqdm(total=outlook.epochs, unit="epoch", disable=None if progress else True)
    with bar, closing(executor(jobs, workers)) as events:  # type: ignore[type-var]
        for name, event in events:
            match event:
                case Epoch():
                    bar.update()
                    if tensorboard:
                        write_events(out / name)
                case Finished(summary):
                    result.finished.append(name)
                    done = f"{len(result.finished)} of {len(runs)}"
                    note(f"{name}: test accuracy {summary['last_test_accuracy']:.4f} ({done} runs)")
                case Failed(message):
                    result.failed[name] = message
                    note(f"{name} failed: {message}")
                case Busy():
                    pass
    result.finished.sort(key=list(runs).index)
    return result


def timed(data_dir: Path | str | None, device: str, threads: int) -> Callable[[RunConfig], float]:
    """A `trial` for `look_ahead`, of steps on this machine."""
    return lambda config: time_epoch(config, data_dir=data_dir, device=device, threads=threads)


def _kind(config: RunConfig) -> tuple[str, ...]:
    """What the time of an epoch mostly depends on."""
    return config.model, config.dataset, config.method


def _epoch_seconds(folder: Path) -> list[float]:
    """Of each epoch that a run has recorded."""
    try:
        lines = (folder / METRICS).read_text().splitlines()
        return [float(json.loads(line)["seconds"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _in_words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
