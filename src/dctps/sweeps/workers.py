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
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from dctps.sweeps.events import Busy, Epoch, Event, Events, Failed, Grouping, Job, Together

_PAUSE = 1.0  # seconds between two looks at the process of the sweep
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang


def execute(jobs: Sequence[Job], workers: int, *, grouping: Grouping | None = None) -> Events:
    """Do all jobs, `workers` at a time.

    Closing the iterator early, as an exception does, stops the workers, which save their runs first.

    Args:
        jobs: in the order in which they are begun.
        workers: processes.
        grouping: of the jobs that a process does together (None: it does one at a time).

    Yields:
        The name of a job and what has happened to it; `Finished` or `Failed` comes last of each.
    """
    groups = [(job,) for job in jobs] if grouping is None else grouping.split(jobs, workers)
    together = None if grouping is None else grouping.together
    waiting = deque(tuple(group) for group in groups)
    crew: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.jobs for worker in crew.values()):
            for worker in crew.values():
                if not worker.jobs and waiting:
                    worker.begin(waiting.popleft(), together)
            while waiting and len(crew) < workers:
                worker = _Worker()
                crew[worker.line] = worker
                worker.begin(waiting.popleft(), together)
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

    def begin(self, jobs: Sequence[Job], together: Together | None) -> None:
        self.jobs = {job.name: job for job in jobs}
        with contextlib.suppress(OSError):  # it is dead, as `hear` will find
            self.line.send((jobs, together))

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
    # Only now, as these import torch, which takes a second.
    from dctps.experiments.signals import Stopped  # noqa: PLC0415
    from dctps.sweeps.perform import perform  # noqa: PLC0415

    while True:
        try:
            jobs, together = line.recv()
        except (EOFError, OSError):
            return
        over = threading.Event()
        watch = threading.Thread(target=_stop_when_alone, args=(over,), daemon=True)
        watch.start()
        try:
            for name, event in perform(jobs, lambda name, event: line.send((name, event)), together):
                line.send((name, event))
        except (Stopped, OSError):  # asked to, or nobody hears
            return
        finally:
            over.set()
            watch.join()


def _stop_when_alone(over: threading.Event) -> None:
    """Have this process save its run and stop, once the sweep's process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a sweep"
    while not over.wait(_PAUSE):
        if not parent.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
            return
