"""A sweep: many runs, each in a folder of its own within one folder.

A sweep has no state of its own. What is finished, begun or missing is read from the run folders. So a sweep
that was killed, or to which runs were added, goes on by the same command, and several processes may work on
the same folder.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dctps.data import DataError, is_published
from dctps.experiments.config import RunConfig, total_epochs
from dctps.experiments.folder import RunFolder
from dctps.experiments.records import RunFolderError, check_data, read_metrics
from dctps.experiments.run import data_of
from dctps.experiments.tensorboard import write_events
from dctps.sweeps.events import Busy, Epoch, Executor, Failed, Finished, Job
from dctps.sweeps.grid import Runs
from dctps.sweeps.workers import execute


@dataclass(frozen=True)
class Outlook:
    """What is left of a sweep: runs by name, the epochs of all together, and their seconds on one worker."""

    finished: list[str]
    begun: list[str]  # cut short; they go on where they were saved
    missing: list[str]
    epochs: int
    seconds: float | None = None  # unknown

    def __str__(self) -> str:
        runs = len(self.finished) + len(self.begun) + len(self.missing)
        text = (
            f"{runs} runs: {len(self.finished)} finished, {len(self.begun)} begun, "
            f"{len(self.missing)} to begin; {self.epochs} epochs left"
        )
        return text if not self.seconds else f"{text}, about {_in_words(self.seconds)} on one worker"


@dataclass
class SweepResult:
    """How a sweep ended: the names of the runs that are done, and by name why each other run failed."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def look_ahead(
    runs: Runs,
    out: Path | str,
    *,
    trial: Callable[..., float] | None = None,
    split: Callable[[Sequence[Job]], Sequence[Sequence[Job]]] | None = None,
) -> Outlook:
    """What is left of a sweep, and how long it will take.

    A run's epochs take as long as the median of the epochs that runs of its kind in this folder have
    recorded; where there is none, as long as `trial` says. A run whose folder is of no use is missing.

    `split` makes the groups of runs that are trained together (None: each run by itself). `trial` is called
    with the configurations of a group, and gives the seconds of an epoch, by trying some steps of it.
    """
    out = Path(out)
    seconds: dict[str, list[float]] = {name: [] for name in runs}  # of each epoch that is recorded
    finished = []
    for name, config in runs.items():
        with suppress(RunFolderError, KeyError):
            seconds[name] = [float(record["seconds"]) for record in read_metrics(out / name)]
        with suppress(RunFolderError):  # the run itself will say so
            finished += [name] if RunFolder(out / name, config).finished() is not None else []
    left = {name: config for name, config in runs.items() if name not in finished}
    epochs = {name: total_epochs(config) - len(seconds[name]) for name, config in left.items()}

    recorded: dict[tuple[Any, ...], list[float]] = {}
    for name, config in runs.items():
        recorded.setdefault(_kind(config), []).extend(seconds[name])
    per_epoch = {
        name: statistics.median(like) for name, config in left.items() if (like := recorded[_kind(config)])
    }
    tried: dict[tuple[Any, ...], float] = {}
    jobs = [Job(name, config, out / name, {}) for name, config in left.items()]
    for group in [[job] for job in jobs] if split is None else split(jobs):
        kinds = tuple(sorted(repr(_kind(job.config)) for job in group))
        if trial is not None and any(job.name not in per_epoch for job in group):
            if kinds not in tried:
                tried[kinds] = trial(*(job.config for job in group)) / len(group)
            per_epoch = {job.name: tried[kinds] for job in group} | per_epoch
    return Outlook(
        finished,
        [name for name in left if seconds[name]],
        [name for name in left if not seconds[name]],
        sum(epochs.values()),
        sum(epochs[name] * per_epoch[name] for name in left) if per_epoch.keys() == left.keys() else None,
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
        what is finished, and the error of each run that failed. The next call tries failed runs again.

    Raises:
        ValueError: fewer than one worker or thread, or TensorBoard is missing.
        RunFolderError: a folder holds something else; it is a `ValueError`.
        KeyboardInterrupt: after SIGINT, or as `Stopped` after SIGTERM; the runs under way are saved.
    """
    if min(workers, threads) < 1:
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    note = on_note or (lambda line: None)
    out = Path(out)
    outlook = look_ahead(runs, out)
    arguments: dict[str, Any] = {"data_dir": data_dir, "device": device, "threads": threads}
    jobs = [Job(name, runs[name], out / name, arguments) for name in outlook.begun + outlook.missing]
    failed = _on_other_data({name: runs[name] for name in outlook.finished}, out, data_dir)
    result = SweepResult([name for name in outlook.finished if name not in failed], failed)
    if tensorboard:
        for name in runs:
            with suppress(RunFolderError):  # of metrics that are damaged there are no events
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


def _on_other_data(runs: Runs, out: Path, data_dir: Path | str | None) -> dict[str, str]:
    """Of finished runs on a user's own data, by name: why the data in `data_dir` are not those they had."""
    failed: dict[str, str] = {}
    loaded: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, config in runs.items():
        if is_published(config.dataset):
            continue
        images = images_of(config)
        try:
            if images not in loaded:
                loaded[images] = data_of(config, data_dir, False, None).to_dict()
            check_data(out / name, loaded[images])
        except (DataError, ValueError) as error:
            failed[name] = str(error)
    return failed


def images_of(config: RunConfig) -> tuple[Any, ...]:
    """What decides the images that are loaded."""
    return config.dataset, config.image_size, config.data_seed


def _kind(config: RunConfig) -> tuple[Any, ...]:
    """The choices that the time of an epoch mostly depends on."""
    images = (*images_of(config)[:2], config.train_images, config.eval_images, config.validation_size)
    network = (config.model, config.offset, config.projection, config.density, config.dynamics == "imp")
    return (*images, *network, config.batch_size, config.augment, config.amp)


def _in_words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
