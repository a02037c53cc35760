"""What a sweep sends to its workers, and what they send back: jobs, and the events of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dctps.experiments.config import ResolvedConfig


@dataclass(frozen=True)
class Job:
    """One run to do: its name in the sweep, its folder, and further arguments of `experiments.run.run`."""

    name: str
    config: ResolvedConfig
    out: Path
    arguments: dict[str, Any]


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
# The name of a job and what has happened to it; `Finished` or `Failed` comes last of each.
Events = Iterator[tuple[str, Event]]
# Does the jobs, so many at a time.
Executor = Callable[[Sequence[Job], int], Events]
# Does several jobs in one process.
RunGroup = Callable[[Sequence[Job]], Events]


@dataclass(frozen=True)
class Grouping:
    """Which jobs one process does together, and how.

    Attributes:
        split: makes the groups, of the jobs and the number of groups that are done at a time.
        run_group: does the several jobs of one group and yields all their events. It is a function of a
            module, because it is sent to other processes by its name.
    """

    split: Callable[[Sequence[Job], int], Sequence[Sequence[Job]]]
    run_group: RunGroup


def groups_of(jobs: Sequence[Job], at_once: int, grouping: Grouping | None) -> list[list[Job]]:
    """The jobs in groups, `at_once` of which are done at a time; without a grouping each is alone."""
    return [[job] for job in jobs] if grouping is None else list(map(list, grouping.split(jobs, at_once)))
