"""What a sweep asks for and what it hears of it: jobs, and the events of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dctps.experiments.config import ResolvedConfig


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
    config: ResolvedConfig
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
Events = Iterator[tuple[str, Event]]
"""The name of a job and what has happened to it, again and again."""


Together = Callable[[Sequence[Job]], Events]
"""Does several jobs in one process."""


@dataclass(frozen=True)
class Grouping:
    """Which jobs one process does together, and how.

    Attributes:
        split: makes the groups, of the jobs and the number of groups that are done at a time.
        together: does the several jobs of one group and yields all their events. It is a function of a
            module, because it is sent to other processes by its name.
    """

    split: Callable[[Sequence[Job], int], Sequence[Sequence[Job]]]
    together: Together


Executor = Callable[[Sequence[Job], int], Events]
"""Does the jobs, so many at a time."""
