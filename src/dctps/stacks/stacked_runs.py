"""Several runs trained as one stack: the folders, states and numbers of separate runs, from shared batches.

Each run is a `Session` of its own, with its network, optimizer, schedule and folder. What they share is the
pass over the data: one `Stack` gives the losses and gradients of all networks on each batch. So any of them
can be stopped, saved and continued as if it had been alone, in a stack or by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F

from dctps.data import Dataset, ImageTensors
from dctps.experiments.folder import RunFolder, RunFolderBusy
from dctps.experiments.network import is_scored
from dctps.experiments.parts import Parts, split
from dctps.experiments.records import check_data, read_summary
from dctps.experiments.run import data_of
from dctps.experiments.saved_session import SavedSession
from dctps.experiments.session import Session
from dctps.experiments.settings import environment_of, torch_settings
from dctps.experiments.signals import StopRequest, deferred_signals
from dctps.stacks.stack import Stack
from dctps.sweeps.events import Busy, Epoch, Events, Failed, Finished, Job
from dctps.training import Metrics, Processes, TrainingError

_Members = dict[str, SavedSession]  # the runs of a stack by name


def run_stacked(jobs: Sequence[Job]) -> Events:
    """Do the runs of `jobs` together, each into its folder as `dctps.experiments.run.run` would.

    Runs that an earlier process left at different positions are continued in as many stacks, one after the
    other. A run that fails leaves the stack and the others go on. The jobs are alike in data, batches and
    architecture, as `executors.grouped` puts them. SIGINT and SIGTERM save the runs and raise `Stopped`.
    """
    left = {job.name for job in jobs}
    try:
        for name, event in _run(jobs):
            if not isinstance(event, Epoch):
                left.discard(name)
            yield name, event
    except Exception as error:  # it concerns all of the runs
        for name in sorted(left):
            yield name, Failed.of(error)


def _run(jobs: Sequence[Job]) -> Events:
    arguments, config = jobs[0].arguments, jobs[0].config
    settings = torch_settings(arguments["device"], arguments["threads"], config.seed)
    with settings as device, ExitStack() as locks, deferred_signals() as request:
        dataset = data_of(config, arguments["data_dir"], False, None)
        parts = split(config, dataset, device)
        by_position: dict[tuple[int, int], _Members] = {}
        for job in jobs:
            try:
                begun = _begin(job, dataset, parts, device, request, locks)
            except RunFolderBusy:
                yield job.name, Busy()
            except Exception as error:  # whatever it is, the other runs go on
                yield job.name, Failed.of(error)
            else:
                if isinstance(begun, SavedSession):
                    by_position.setdefault(begun.session.position, {})[job.name] = begun
                else:
                    yield job.name, begun
        for members in by_position.values():
            next(iter(members.values())).stop_if_asked()
            yield from _complete(members)


def _begin(
    job: Job, dataset: Dataset, parts: Parts, device: torch.device, request: StopRequest, locks: ExitStack
) -> SavedSession | Finished:
    """The run of `job` where it was last saved, its folder locked until `locks` end."""
    config = job.config
    folder = RunFolder(job.out, config)
    check_data(job.out, dataset.to_dict())
    if (summary := folder.finished()) is not None:
        return Finished(summary)
    torch.manual_seed(config.seed)  # as a process of its own begins
    supports = folder.saved_supports() if is_scored(config) else None
    session = Session(config, dataset, device, supports=supports, parts=parts)
    locks.enter_context(folder.writing())
    if (summary := folder.finished()) is not None:  # by another process, since the first look
        return Finished(summary)
    environment = {**environment_of(device, Processes(), config), "backends": "stacked"}
    saved = SavedSession(session, folder, request, environment)
    saved.resume(dataset.to_dict(), lambda line: None)
    return saved


def _complete(members: _Members) -> Events:
    """Train members that stand at one position to their end."""
    while members and not _first(members).finished:
        count = len(members)
        for member in members.values():
            member.session.share(_first(members), partial(_share_of_time, count))
        stack = _stack(members)
        for name, failed in _train_epoch(members, stack):
            yield name, failed
        if not members:
            return
        stack = stack if len(members) == count else _stack(members)
        for (name, member), metrics in zip(list(members.items()), _evaluate(members, stack), strict=True):
            try:
                record = member.session.close_epoch(*metrics)
                member.save_epoch(record)
            except Exception as error:  # a full disk, say
                del members[name]
                yield name, Failed.of(error)
            else:
                yield name, Epoch(record)
    for name, member in members.items():
        try:
            member.finish()
        except Exception as error:
            yield name, Failed.of(error)
        else:
            yield name, Finished(read_summary(member.folder.path))


def _share_of_time(sharers: int) -> float:
    """Seconds, of which each of `sharers` runs that train at the same time has its part."""
    return time.perf_counter() / sharers


def _first(members: _Members) -> Session:
    return next(iter(members.values())).session


def _stack(members: _Members) -> Stack:
    return Stack([member.session.model for member in members.values()])


def _train_epoch(members: _Members, stack: Stack) -> Events:
    """Train to the end of the epoch; members that fail are taken out of `members`, and yielded."""
    sessions = {name: member.session for name, member in members.items()}
    for images, labels in _first(members).training_batches(_between(members)):
        losses = stack.step(images, labels)
        dynamics = {name: sessions[name].trainer.dynamics for name in members}
        changing = [sessions[name] for name, one in dynamics.items() if one is not None and one.due]
        for session in changing:
            # What decides on supports may watch a backward pass, such as the hooks of RigL.
            session.trainer.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(session.model(images), labels).backward()
        step = zip(sessions.items(), losses.loss.tolist(), losses.correct.tolist(), strict=True)
        for (name, session), loss, correct in step:
            if name not in members:
                continue
            try:
                session.take_step(loss, correct, len(labels))
            except TrainingError as error:
                del members[name]
                yield name, Failed.of(error)
        if not members:
            return
        if changing:
            stack.lay_out()


def _evaluate(members: _Members, stack: Stack) -> list[tuple[Metrics | None, Metrics]]:
    """Each member's metrics on the validation images, where there are any, and on the test images."""
    session, between = _first(members), _between(members)

    def metrics(images: ImageTensors) -> list[Metrics]:
        return stack.evaluate(session.evaluation_batches(images, between))

    held_out, test = session.parts.validation, session.parts.test
    validation = metrics(held_out) if len(held_out) else [None] * len(members)
    return list(zip(validation, metrics(test), strict=True))


def _between(members: _Members) -> Callable[[], None]:
    """To call before each batch: if a signal has come, it saves all members and raises `Stopped`."""

    def between() -> None:
        asked = [member for member in members.values() if member.request.number is not None]
        for member in asked:
            member.save()
        for member in asked:
            member.stop_if_asked()

    return between
