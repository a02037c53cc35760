"""Runs side by side on this machine, each worker a process of its own.

A worker that dies takes its one run with it, which is reported and can go on later. If the sweep itself
dies, its workers notice that their pipe is closed, save their runs and stop.
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

from dctps.sweeps.events import Busy, Epoch, Event, Events, Failed, Grouping, Job, RunGroup, groups_of

_PAUSE = 1.0  # seconds between two looks at the process of the sweep
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang


def execute(jobs: Sequence[Job], workers: int, *, grouping: Grouping | None = None) -> Events:
    """Do all jobs, in their order, in `workers` processes at a time, each of which does one group at a time.

    Closing the iterator early, as an exception does, stops the workers, which save their runs first.
    """
    waiting = deque(groups_of(jobs, workers, grouping))
    run_group = None if grouping is None else grouping.run_group
    processes: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.jobs for worker in processes.values()):
            while waiting:
                worker = next((one for one in processes.values() if not one.jobs), None)
                if worker is None and len(processes) == workers:
                    break
                if worker is None:
                    worker = _Worker()
                    processes[worker.pipe] = worker
                worker.begin(waiting.popleft(), run_group)
            for pipe in wait([pipe for pipe, worker in processes.items() if worker.jobs]):
                worker = processes[pipe]  # type: ignore[index]
                for name, event in worker.receive():
                    if isinstance(event, Busy):
                        waiting.append([worker.jobs[name]])
                    if not isinstance(event, Epoch):
                        del worker.jobs[name]
                    yield name, event
                if worker.is_dead:
                    del processes[pipe]  # type: ignore[arg-type]
    finally:
        for worker in processes.values():
            worker.stop()
        for worker in processes.values():
            worker.process.join()


class _Worker:
    """A process that does one group of jobs at a time; `jobs` has those that are not done, by name."""

    def __init__(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process: BaseProcess = _SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe closes when the process ends
        self.jobs: dict[str, Job] = {}
        self.is_dead = False

    def begin(self, jobs: Sequence[Job], run_group: RunGroup | None) -> None:
        self.jobs = {job.name: job for job in jobs}
        with contextlib.suppress(OSError):  # it is dead, as `receive` will find
            self.pipe.send((jobs, run_group))

    def receive(self) -> list[tuple[str, Event]]:
        """What the worker sends next; its death is the failure of its jobs."""
        try:
            return [self.pipe.recv()]
        except (EOFError, OSError):
            self.process.join()
            self.is_dead = True
            status = self.process.exitcode
            reason = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            hint = " (out of memory? Use fewer workers)" if status == -signal.SIGKILL else ""
            message = f"its process ended with {reason}{hint}; it goes on where it was last saved"
            return [(name, Failed(message)) for name in self.jobs]

    def stop(self) -> None:
        self.pipe.close()
        if self.jobs and self.process.is_alive():
            self.process.terminate()


def _work(pipe: Connection) -> None:
    """What a worker does: take jobs until the pipe is closed."""
    # Ctrl-C reaches every process of a terminal. The sweep takes it, and stops the workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only now, as these import torch, which takes a second.
    from dctps.experiments.signals import Stopped  # noqa: PLC0415
    from dctps.sweeps.perform import perform  # noqa: PLC0415

    while True:
        try:
            jobs, run_group = pipe.recv()
        except (EOFError, OSError):
            return
        over = threading.Event()
        watch = threading.Thread(target=_stop_when_alone, args=(over,), daemon=True)
        watch.start()
        try:
            for name, event in perform(jobs, lambda name, event: pipe.send((name, event)), run_group):
                pipe.send((name, event))
        except (Stopped, OSError):  # asked to, or nobody receives
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
