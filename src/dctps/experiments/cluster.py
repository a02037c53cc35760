"""Runs of a sweep on Ray: on this machine, or on every node of a cluster.

A run is one Ray task, which holds its folder, saves itself and goes on just as in a worker of
`dctps.experiments.workers`; the folders, and the data, must be on a file system that all nodes see. What Ray
decides is where and when: a task asks for as many CPUs as the run has threads, and for its share of a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.experiments.workers import Busy, Epoch, Event, Failed, Job, perform

if TYPE_CHECKING:
    from ray.util.queue import Queue

_PAUSE = 0.5  # seconds between two looks at the epochs done
_GRACE = 60.0  # seconds for the runs under way to save themselves


def on_ray(
    address: str = "local", *, runs_per_gpu: int = 1
) -> Callable[[Sequence[Job], int], Iterator[tuple[str, Event]]]:
    """The executor that does the jobs of a sweep as Ray tasks, to be given to `run_sweep`.

    A process that is connected to Ray stays so, whatever the address; otherwise the connection lasts as long
    as the sweep.

    Args:
        address: of a cluster's head (`host:port`); `"auto"` for the cluster that this machine belongs to, or
            that RAY_ADDRESS names; `"local"` for a new instance on this machine alone.
        runs_per_gpu: runs that share a GPU, where the device is `"cuda"`, or `"auto"` and there are GPUs.

    Raises:
        ValueError: Ray is missing or not reached, or `runs_per_gpu` is less than 1; once jobs are given, they
            name one certain GPU, or need more than this machine has.
    """
    if runs_per_gpu < 1:
        raise ValueError(f"runs_per_gpu must be at least 1, got {runs_per_gpu}")
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise ValueError("sweeps on Ray need it: pip install dctps[ray]") from None

    def execute(jobs: Sequence[Job], workers: int) -> Iterator[tuple[str, Event]]:
        if jobs:
            with _connected(address):
                total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
                asked = {job.name: needs(job, total.get("GPU", 0), runs_per_gpu) for job in jobs}
                if address == "local":  # a cluster may grow
                    _check_fit(asked, total)
                yield from _execute(jobs, workers, asked)

    return execute


def needs(job: Job, gpus: float, runs_per_gpu: int) -> dict[str, float]:
    """The resources that Ray sets aside for a job.

    Args:
        job: with its threads and device.
        gpus: of the whole cluster.
        runs_per_gpu: runs that share one.

    Raises:
        ValueError: the job's device is one certain GPU.
    """
    device = job.place.get("device", "auto")
    if device.startswith("cuda:"):
        raise ValueError(f"on Ray the device cannot be {device!r}, since Ray deals out the GPUs: give cuda")
    share = {"num_gpus": 1 / runs_per_gpu} if device == "cuda" or (device == "auto" and gpus) else {}
    return {"num_cpus": float(job.place.get("threads") or 1), **share}


def _check_fit(asked: dict[str, dict[str, float]], total: dict[str, float]) -> None:
    """Make sure that no run waits for ever."""
    for name, resources in asked.items():
        for kind, remedy in (("CPU", "fewer threads"), ("GPU", "the device cpu")):
            needed, there = resources.get(f"num_{kind.lower()}s", 0), total.get(kind, 0)
            if needed > there:
                raise ValueError(
                    f"{name} needs {needed:g} {kind}s, and Ray has {there:g} on this machine: use {remedy}"
                )


def _execute(
    jobs: Sequence[Job], workers: int, asked: dict[str, dict[str, float]]
) -> Iterator[tuple[str, Event]]:
    """As `workers.execute`, in the cluster that this process is connected to."""
    import ray  # noqa: PLC0415
    from ray.util.queue import Queue  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    task = ray.remote(max_retries=0)(_task)
    # Beside this process, so that no other node's end takes the line away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    epochs = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    waiting = deque(map(_anywhere, jobs))
    under_way: dict[Any, Job] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                job = waiting.popleft()
                under_way[task.options(name=job.name, **asked[job.name]).remote(job, epochs)] = job
            done, _ = ray.wait(list(under_way), timeout=_PAUSE)
            # A task has put its epochs there before it is done.
            yield from epochs.get_nowait_batch(epochs.size())
            for reference in done:
                job, event = under_way.pop(reference), _outcome(reference)
                if isinstance(event, Busy):
                    waiting.append(job)
                yield job.name, event
    finally:
        for reference in under_way:
            ray.cancel(reference)
        if under_way:
            ray.wait(list(under_way), num_returns=len(under_way), timeout=_GRACE)
        epochs.shutdown()


def _task(job: Job, epochs: Queue) -> Event:
    """One run, in a worker of Ray."""
    # Ray cancels by this signal alone, which is ignored below a sweep that was begun in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return perform(job, lambda record: epochs.put((job.name, Epoch(record))))


def _outcome(reference: Any) -> Event:
    """What a task that is done has returned; the end of its worker is the failure of its job."""
    import ray  # noqa: PLC0415

    try:
        event: Event = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()
        if isinstance(error, ray.exceptions.RayTaskError):  # a traceback, which ends in what was raised
            return Failed(reason[-1])
        return Failed(
            f"its Ray worker ended ({type(error).__name__}: {reason[0]}); it goes on where it was last saved"
        )
    return event


def _anywhere(job: Job) -> Job:
    """The job with paths that do not depend on where a process was started."""
    data = job.place.get("data_dir")
    place = job.place if data is None else job.place | {"data_dir": Path(data).absolute()}
    return replace(job, out=job.out.absolute(), place=place)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Be connected to Ray within."""
    import ray  # noqa: PLC0415

    if ray.is_initialized():
        yield
        return
    variables = {name: value for name, value in os.environ.items() if name.startswith("DCTPS_")}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"Ray at {address!r} is not reached: {error}") from None
    if main:  # it sets a handler of its own
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
