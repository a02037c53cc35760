"""Runs of a sweep on Ray: on this machine, or on every node of a cluster.

A run is one Ray task, which holds its folder, saves itself and goes on just as in a worker of
`dctps.sweeps.workers`; the folders, and the data, must be on a file system that all nodes see. What Ray
decides is where and when: a task asks for as many CPUs as the run has threads, and for its share of a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.sweeps.events import Busy, Epoch, Events, Executor, Failed, Grouping, Job, RunGroup, groups_of
from dctps.sweeps.perform import perform

if TYPE_CHECKING:
    from ray.util.queue import Queue

_KINDS = {"num_cpus": "CPU", "num_gpus": "GPU"}
_PAUSE = 0.5  # seconds between two looks at the epochs done
_GRACE = 60.0  # seconds for the runs under way to save themselves


def ray_executor(
    address: str = "local", *, runs_per_gpu: int = 1, grouping: Grouping | None = None
) -> Executor:
    """As `dctps.stacks.on_ray`, with a grouping of the jobs that a task does together (None: it does one)."""
    if runs_per_gpu < 1:
        raise ValueError(f"runs_per_gpu must be at least 1, got {runs_per_gpu}")
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise ValueError("sweeps on Ray need it: pip install dctps[ray]") from None

    def execute(jobs: Sequence[Job], workers: int) -> Events:
        if not jobs:
            return
        with _connected(address):
            total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            asked = {job.name: needs(job, total.get("GPU", 0), runs_per_gpu) for job in jobs}
            for name, resources in asked.items() if address == "local" else ():  # a cluster may grow
                if _fitting(resources, total) < 1:  # it would wait for ever
                    needed = " and ".join(f"{n:g} {_KINDS[kind]}" for kind, n in resources.items())
                    there = " and ".join(
                        f"{total.get(_KINDS[kind], 0):g} {_KINDS[kind]}" for kind in resources
                    )
                    raise ValueError(
                        f"{name} needs {needed}, and Ray has {there} on this machine: use fewer threads, or "
                        f"the device cpu"
                    )
            at_once = min(workers, max(1, *(_fitting(resources, total) for resources in asked.values())))
            groups = [list(map(_anywhere, group)) for group in groups_of(jobs, at_once, grouping)]
            yield from _execute(groups, workers, asked, None if grouping is None else grouping.run_group)

    return execute


def needs(job: Job, gpus: float, runs_per_gpu: int) -> dict[str, float]:
    """The resources that Ray sets aside for a job, in a cluster that has `gpus`."""
    device = job.arguments.get("device", "auto")
    if device.startswith("cuda:"):
        raise ValueError(f"on Ray the device cannot be {device!r}, since Ray deals out the GPUs: give cuda")
    share = {"num_gpus": 1 / runs_per_gpu} if device == "cuda" or (device == "auto" and gpus) else {}
    return {"num_cpus": float(job.arguments.get("threads") or 1), **share}


def _fitting(resources: dict[str, float], total: dict[str, float]) -> int:
    """How many tasks that need so much there can be at a time."""
    return int(min(total.get(_KINDS[name], 0) / needed + 1e-6 for name, needed in resources.items()))


def _execute(
    groups: Sequence[Sequence[Job]],
    workers: int,
    asked: dict[str, dict[str, float]],
    run_group: RunGroup | None,
) -> Events:
    """As `workers.execute`, in the cluster that this process is connected to."""
    import ray  # noqa: PLC0415
    from ray.util.queue import Queue  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    task = ray.remote(max_retries=0)(_task)
    # Beside this process, so that no other node's end takes the queue away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    waiting = deque(groups)
    running: dict[Any, dict[str, Job]] = {}  # by task, its jobs that are not done, by name
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                jobs = waiting.popleft()
                named = task.options(name=jobs[0].name, **asked[jobs[0].name])
                running[named.remote(jobs, run_group, queue)] = {job.name: job for job in jobs}
            ended, _ = ray.wait(list(running), timeout=_PAUSE)
            # Everything that a task has sent before its end is in the queue.
            for name, event in queue.get_nowait_batch(queue.size()):
                left = next(jobs for jobs in running.values() if name in jobs)
                if isinstance(event, Busy):
                    waiting.append([left[name]])
                if not isinstance(event, Epoch):
                    del left[name]
                yield name, event
            for reference in ended:
                for name in running.pop(reference):
                    yield name, _failure(reference)
    finally:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE)
        queue.shutdown()


def _task(jobs: Sequence[Job], run_group: RunGroup | None, queue: Queue) -> None:
    """The jobs of one group, in a worker of Ray."""
    # Ray cancels by this signal alone, which is ignored below a sweep that was begun in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for event in perform(jobs, lambda name, event: queue.put((name, event)), run_group):
        queue.put(event)


def _failure(reference: Any) -> Failed:
    """Why a task has ended before its jobs were done."""
    import ray  # noqa: PLC0415

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Failed(str(error).strip().splitlines()[-1])  # a traceback, which ends in what was raised
    except ray.exceptions.RayError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return Failed(f"its Ray worker ended ({reason}); it goes on where it was last saved")
    return Failed("its Ray task ended and did not say how")


def _anywhere(job: Job) -> Job:
    """The job with paths that do not depend on where a process was started."""
    data = job.arguments.get("data_dir")
    arguments = job.arguments if data is None else job.arguments | {"data_dir": Path(data).absolute()}
    return replace(job, out=job.out.absolute(), arguments=arguments)


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
