"""Runs side by side on this machine, each worker a process of its own.

A worker that dies takes its one run with it, which is reported and can go on later. If the sweep itself
dies, its workers notice that the line to it is cut, save their runs and stop.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dctps.experiments.config import RunConfig

_PAUSE = 1.0  # seconds between two looks at what other processes do
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        name: in the sweep.
        config: of the run.
        out: its folder.
        place: further arguments of `dctps.experiments.run.run`.
    """

    name: str
    config: RunConfig
    out: Path
    place: dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """An epoch of a run is done and saved; `record` is its line of metrics.jsonl."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A run is finished; `summary` is as in summary.json."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A run has failed; `message` says why."""

    message: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """What `error` says, on one line."""
        return cls(f"{type(error).__name__}: {' '.join(str(error).split())}")


@dataclass(frozen=True)
class Busy:
    """Another process is at this run; it is tried again after the others."""


Event = Epoch | Finished | Failed | Busy


def execute(jobs: Sequence[Job], workers: int) -> Iterator[tuple[str, Event]]:
    """Do all jobs, `workers` at a time.

    Closing the iterator early, as an exception does, stops the workers, which save their runs first.

    Args:
        jobs: in the order in which they are begun.
        workers: processes.

    Yields:
        The name of a job and what has happened to it; `Finished` or `Failed` comes last of each.
    """
    return execute_groups([(job,) for job in jobs], workers)


def execute_groups(groups: Sequence[Sequence[Job]], workers: int) -> Iterator[tuple[str, Event]]:
    """Do all jobs of all groups, `workers` groups at a time, those of one group together as a stack.

    Args:
        groups: in the order in which they are begun; several jobs together must be ones that
            `dctps.experiments.stacked.run_stacked` takes.
        workers: processes.

    Yields:
        As `execute`.
    """
    waiting = deque(tuple(group) for group in groups)
    crew: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.jobs for worker in crew.values()):
            for worker in crew.values():
                if not worker.jobs and waiting:
                    worker.begin(waiting.popleft())
            while waiting and len(crew) < workers:
                worker = _Worker()
                crew[worker.line] = worker
                worker.begin(waiting.popleft())
            for line in wait([line for line, worker in crew.items() if worker.jobs]):
                worker = crew[line]  # type: ignore[index]
                for name, event in worker.hear():
                    if isinstance(event, Busy):
                        waiting.append((worker.jobs[name],))
                    if not isinstance(event, Epoch):
                        del worker.jobs[name]
                    yield name, event
                if worker.is_dead:
                    del crew[line]  # type: ignore[arg-type]
    finally:
        for worker in crew.values():
            worker.dismiss()
        for worker in crew.values():
            worker.process.join()


class _Worker:
    """A process that does one group of jobs at a time.

    Attributes:
        jobs: by name, those that are not done.
    """

    def __init__(self) -> None:
        self.line, theirs = _SPAWN.Pipe()
        self.process: BaseProcess = _SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that their death cuts the line
        self.jobs: dict[str, Job] = {}
        self.is_dead = False

    def begin(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.name: job for job in jobs}
        with contextlib.suppress(OSError):  # it is dead, as `hear` will find
            self.line.send(jobs)

    def hear(self) -> list[tuple[str, Event]]:
        """What the worker says next; its death is the failure of its jobs."""
        try:
            said: tuple[str, Event] = self.line.recv()
        except (EOFError, OSError):
            self.process.join()
            self.is_dead = True
            status = self.process.exitcode
            reason = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            hint = " (out of memory? Use fewer workers)" if status == -signal.SIGKILL else ""
            message = f"its process ended with {reason}{hint}; it goes on where it was last saved"
            return [(name, Failed(message)) for name in self.jobs]
        return [said]

    def dismiss(self) -> None:
        self.line.close()
        if self.jobs and self.process.is_alive():
            self.process.terminate()


def _work(line: Connection) -> None:
    """A worker's life: take jobs until the line is cut."""
    # Ctrl-C reaches every process of a terminal: the sweep hears it, and tells the workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from dctps.experiments.signals import Stopped  # noqa: PLC0415

    while True:
        try:
            jobs: tuple[Job, ...] = line.recv()
        except (EOFError, OSError):
            return
        over = threading.Event()
        watch = threading.Thread(target=_stop_when_alone, args=(over,), daemon=True)
        watch.start()
        try:
            for name, event in perform(jobs, lambda name, event: line.send((name, event))):
                line.send((name, event))
        except (Stopped, OSError):  # asked to, or nobody hears
            return
        finally:
            over.set()
            watch.join()


def perform(jobs: Sequence[Job], tell: Callable[[str, Event], None]) -> Iterator[tuple[str, Event]]:
    """Do the jobs of one group in this process.

    Args:
        jobs: of the group; several are trained as a stack.
        tell: called with the name of a job and each of its epochs, once that is saved.

    Yields:
        The name of a job and what has happened to it; of a stack all epochs too. `Busy` comes after a pause,
        so that whoever tries again at once does not spin.

    Raises:
        Stopped: a `KeyboardInterrupt`, after SIGINT or SIGTERM; the runs are saved.
        BrokenPipeError: from `tell`.
    """
    from dctps.experiments.folder import RunFolderBusy  # noqa: PLC0415
    from dctps.experiments.run import run  # noqa: PLC0415
    from dctps.experiments.stacked import run_stacked  # noqa: PLC0415

    if len(jobs) > 1:
        for name, event in run_stacked(jobs):
            if isinstance(event, Busy):
                time.sleep(_PAUSE)
            yield name, event
        return
    (job,) = jobs
    try:
        summary = run(
            job.config, out=job.out, on_epoch=lambda record: tell(job.name, Epoch(record)), **job.place
        )
    except BrokenPipeError:
        raise
    except RunFolderBusy:
        time.sleep(_PAUSE)
        yield job.name, Busy()
    except Exception as error:  # whatever it is, the other runs go on
        yield job.name, Failed.of(error)
    else:
        yield job.name, Finished(summary)


def _stop_when_alone(over: threading.Event) -> None:
    """Have this process save its run and stop, once the sweep's process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a sweep"
    while not over.wait(_PAUSE):
        if not parent.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
            return
