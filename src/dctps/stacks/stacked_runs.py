"""Several runs trained as one stack: the folders, states and numbers of separate runs, from shared batches.

Each run is a `Session` of its own, with its network, optimizer, schedule and folder. What they share is the
pass over the data: one `Stack` gives the losses and gradients of all networks on each batch. So any of them
can be stopped, saved and continued as if it had been alone, in a stack or by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from dctps.data import Dataset, ImageTensors
from dctps.experiments.folder import RunFolder, RunFolderBusy
from dctps.experiments.network import is_scored
from dctps.experiments.parts import Parts, split
from dctps.experiments.records import check_data, read_summary
from dctps.experiments.run import data_of
from dctps.experiments.session import Session
from dctps.experiments.settings import environment_of, torch_settings
from dctps.experiments.signals import StopRequest, deferred_signals
from dctps.experiments.work import Work
from dctps.stacks.stack import Stack
from dctps.sweeps.events import Busy, Epoch, Events, Failed, Finished, Job
from dctps.training import Metrics, Processes, TrainingError


@dataclass
class _Member:
    """One run of a stack."""

    name: str
    session: Session
    work: Work


def run_stacked(jobs: Sequence[Job]) -> Events:
    """Do the runs of `jobs` together, each into its folder as `dctps.experiments.run.run` would.

    Runs that an earlier process left at different places are continued in as many stacks, one after the
    other. A run that fails leaves the stack and the others go on.

    Args:
        jobs: alike in data, batches and architecture, as `dctps.stacks.executors.grouped` puts them.

    Yields:
        The name of a run and what has happened to it.

    Raises:
        Stopped: after SIGINT or SIGTERM; the runs are saved.
    """
    left = {job.name for job in jobs}
    try:
        for name, event in _run(jobs):
            if not isinstance(event, Epoch):
                left.discard(name)
            yield name, event
    except Exception as error:  # of none of the runs alone
        for name in sorted(left):
            yield name, Failed.of(error)


def _run(jobs: Sequence[Job]) -> Events:
    place, config = jobs[0].place, jobs[0].config
    settings = torch_settings(place["device"], place["threads"], config.seed)
    with settings as device, ExitStack() as held, deferred_signals() as request:
        dataset = data_of(config, place["data_dir"], False, None)
        parts = split(config, dataset, device)
        members = []
        for job in jobs:
            try:
                found = _begin(job, dataset, parts, device, request, held)
            except RunFolderBusy:
                yield job.name, Busy()
            except Exception as error:  # whatever it is, the other runs go on
                yield job.name, Failed.of(error)
            else:
                if isinstance(found, _Member):
                    members.append(found)
                else:
                    yield job.name, found
        by_position: dict[tuple[int, int], list[_Member]] = {}
        for member in members:
            member.work.stop_if_asked(f"saved {member.session.where}")
            by_position.setdefault(member.session.position, []).append(member)
        for together in by_position.values():
            yield from _complete(together)


def _begin(
    job: Job,
    dataset: Dataset,
    parts: Parts,
    device: torch.device,
    request: StopRequest,
    held: ExitStack,
) -> _Member | Finished:
    """The run of `job` where it was last saved, its folder locked until `held` ends."""
    config = job.config
    folder = RunFolder(job.out, config)
    check_data(job.out, dataset.to_dict())
    if (summary := folder.finished()) is not None:
        return Finished(summary)
    torch.manual_seed(config.seed)  # as a process of its own begins
    supports = folder.saved_supports() if is_scored(config) else None
    session = Session(config, dataset, device, supports=supports, parts=parts)
    held.enter_context(folder.writing())
    if (summary := folder.finished()) is not None:  # by another process, since the first look
        return Finished(summary)
    environment = {**environment_of(device, Processes(), config), "backends": "stacked"}
    work = Work(session, folder, request, environment, Processes(), None)
    work.resume(dataset.to_dict(), lambda line: None)
    return _Member(job.name, session, work)


def _complete(members: list[_Member]) -> Events:
    """Train members that stand at one position to their end."""
    while members and not members[0].session.finished:
        for member in members:
            member.session.share(members[0].session, partial(_shared_clock, len(members)))
        stack = Stack([member.session.model for member in members])
        for name, event in _train_epoch(members, stack):
            members = [member for member in members if member.name != name]
            yield name, event
        if not members:
            return
        stack = stack if len(stack.models) == len(members) else Stack([m.session.model for m in members])
        closed = _evaluate(members, stack)
        for member, metrics in zip(list(members), closed, strict=True):
            try:
                record = member.session.close_epoch(*metrics)
                member.work.save_epoch(record)
            except Exception as error:  # a full disk, say
                members.remove(member)
                yield member.name, Failed.of(error)
            else:
                yield member.name, Epoch(record)
    for member in members:
        try:
            member.work.folder.finish(member.work.summary())
        except Exception as error:
            yield member.name, Failed.of(error)
        else:
            yield member.name, Finished(read_summary(member.work.folder.path))


def _train_epoch(members: list[_Member], stack: Stack) -> Events:
    """Train to the end of the epoch; says which of the members have failed."""
    failed: set[str] = set()
    stop = _stopping(members)
    for images, labels in members[0].session.training_batches(stop):
        losses = stack.step(images, labels)
        changing = [m for m in members if m.name not in failed and _changes(m)]
        for member in changing:
            # What decides on supports may watch a backward pass, such as the hooks of RigL.
            member.session.trainer.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(member.session.model(images), labels).backward()
        for member, loss, correct in zip(members, losses.loss.tolist(), losses.correct.tolist(), strict=True):
            if member.name in failed:
                continue
            try:
                member.session.take_step(loss, correct, len(labels))
            except TrainingError as error:
                failed.add(member.name)
                yield member.name, Failed.of(error)
        if changing:
            stack.lay_out()


def _changes(member: _Member) -> bool:
    """Whether the next step changes the supports of this network."""
    dynamics = member.session.trainer.dynamics
    return dynamics is not None and dynamics.due


def _shared_clock(sharers: int) -> float:
    """Seconds, of which each of `sharers` runs that train at the same time has its part."""
    return time.perf_counter() / sharers


def _evaluate(members: list[_Member], stack: Stack) -> list[tuple[Metrics | None, Metrics]]:
    """Each member's metrics on the validation images, where there are any, and on the test images."""
    session, stop = members[0].session, _stopping(members)

    def passed(data: ImageTensors) -> list[Metrics]:
        return stack.evaluate(session.evaluation_batches(data, stop))

    parts = session.parts
    validation = passed(parts.validation) if len(parts.validation) else [None] * len(members)
    return list(zip(validation, passed(parts.test), strict=True))


def _stopping(members: list[_Member]) -> Callable[[], None]:
    """To call before each batch: saves all members and raises `Stopped` if a signal has come."""
    request = members[0].work.request

    def between() -> None:
        if request.number is None:
            return
        for member in members:
            if member.session.position != member.work.saved:
                member.work.save()
        for member in members:
            session = member.session
            member.work.stop_if_asked(f"saved {session.where}: the same command continues from there")

    return between
