"""The jobs of one group, done in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dctps.allocator import keep_freed_memory
from dctps.experiments.folder import RunFolderBusy
from dctps.experiments.run import run
from dctps.sweeps.events import Busy, Epoch, Event, Events, Failed, Finished, Job, RunGroup

_PAUSE = 1.0  # seconds before a run that another process holds is tried again


def perform(
    jobs: Sequence[Job], send: Callable[[str, Event], None], run_group: RunGroup | None = None
) -> Events:
    """Do the jobs of one group in this process: several by `run_group`, of a `Grouping`.

    Their events are yielded, except the epochs of a single job: `send` is called with each, once it is saved.
    `Busy` comes after a pause, so that whoever tries again at once does not spin. After SIGINT or SIGTERM
    `Stopped` is raised, and the runs are saved.
    """
    keep_freed_memory()
    events = run_group(jobs) if run_group is not None and len(jobs) > 1 else _perform_one(jobs[0], send)
    for name, event in events:
        if isinstance(event, Busy):
            time.sleep(_PAUSE)
        yield name, event


def _perform_one(job: Job, send: Callable[[str, Event], None]) -> Events:
    def on_epoch(record: dict[str, object]) -> None:
        send(job.name, Epoch(record))

    try:
        event: Event = Finished(run(job.config, out=job.out, on_epoch=on_epoch, **job.arguments))
    except BrokenPipeError:
        raise
    except RunFolderBusy:
        event = Busy()
    except Exception as error:  # whatever it is, the other runs go on
        event = Failed.of(error)
    yield job.name, event
