"""The jobs of one group, done in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dctps.experiments.folder import RunFolderBusy
from dctps.experiments.run import run
from dctps.sweeps.events import Busy, Epoch, Event, Events, Failed, Finished, Job, Together

_PAUSE = 1.0  # seconds before a run that another process holds is tried again


def perform(
    jobs: Sequence[Job],
    tell: Callable[[str, Event], None],
    together: Together | None = None,
) -> Events:
    """Do the jobs of one group in this process.

    Args:
        jobs: of the group.
        tell: called with the name of a job and each of its epochs, once that is saved.
        together: does the jobs of a group of several (None: there is one job), as `Grouping` has it.

    Yields:
        The name of a job and what has happened to it; of several jobs all epochs too. `Busy` comes after a
        pause, so that whoever tries again at once does not spin.

    Raises:
        Stopped: a `KeyboardInterrupt`, after SIGINT or SIGTERM; the runs are saved.
        BrokenPipeError: from `tell`.
    """
    if together is not None and len(jobs) > 1:
        for name, event in together(jobs):
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
