"""Which runs of a sweep can be one stack, and the executors that train them so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from dctps.data import Description, describe_dataset, list_datasets
from dctps.experiments.config import RunConfig, resolve, to_dict
from dctps.experiments.network import plain_network
from dctps.stacks.chain import NotAChain, chain_of
from dctps.stacks.stacked_runs import run_stacked
from dctps.sweeps.events import Executor, Grouping, Job
from dctps.sweeps.ray import ray_executor
from dctps.sweeps.workers import execute

# In these the runs of a stack may differ: each has its own network, optimizer, schedule and dynamics.
_OWN = (
    *(
        "method",
        "density",
        "seed",
        "batch_seed",
        "offset",
        "allocation",
        "criterion",
        "alpha",
        "init",
        "zero_head",
    ),
    *("alpha_trainable", "projection", "optimizer", "lr", "momentum", "nesterov", "weight_decay"),
    *("decay_alpha", "decay_norm_bias", "schedule", "milestones", "clip_norm", "options"),
    *("dynamics", "update_interval", "drop_fraction", "dynamics_end"),
)
_USUAL = Description(classes=10, channels=3, image_size=32)  # where only a data set's files say


def stacked(size: int) -> Executor:
    """An executor for `run_sweep` that trains up to `size` runs at a time in each worker, as one stack.

    Raises:
        ValueError: a size below 1.
    """
    return partial(execute, grouping=_stacks(size))


def on_ray(address: str = "local", *, runs_per_gpu: int = 1, stack: int = 1) -> Executor:
    """An executor for `run_sweep` that does the runs as Ray tasks, several of them in each as one stack.

    A process that is connected to Ray stays so, whatever the address; otherwise the connection lasts as long
    as the sweep.

    Args:
        address: of a cluster's head (`host:port`); `"auto"` for the cluster that this machine belongs to, or
            that RAY_ADDRESS names; `"local"` for a new instance on this machine alone.
        runs_per_gpu: tasks that share a GPU, where the device is `"cuda"`, or `"auto"` and there are GPUs.
        stack: runs that a task trains together at most.

    Raises:
        ValueError: Ray is missing or not reached, or a number is less than 1; once jobs are given, they name
            one certain GPU, or need more than this machine has.
    """
    grouping = None if stack == 1 else _stacks(stack)
    return ray_executor(address, runs_per_gpu=runs_per_gpu, grouping=grouping)


def _stacks(size: int) -> Grouping:
    if size < 1:
        raise ValueError(f"a stack needs at least 1 run, got {size}")
    return Grouping(lambda jobs, workers: grouped(jobs, size, workers), run_stacked)


def grouped(jobs: Sequence[Job], size: int, workers: int = 1) -> list[list[Job]]:
    """The jobs in groups of at most `size` that can be one stack; jobs that cannot be are alone, and last.

    Jobs with one offset stay together, as they share its product with the images. The slowest, hyperplanes,
    come first. The stacks of like jobs are as equal as can be, and fewer jobs than `size` times the workers
    are spread over all workers.
    """
    alike: dict[str, list[Job]] = {}
    alone = []
    for job in jobs:
        if why_not(job.config) is None:
            alike.setdefault(_shared(job), []).append(job)
        else:
            alone.append([job])
    groups = []
    for like in alike.values():
        like.sort(key=_order)
        count = max(-(-len(like) // size), min(workers, len(like)))
        groups += [like[len(like) * i // count : len(like) * (i + 1) // count] for i in range(count)]
    return groups + alone


def why_not(config: RunConfig) -> str | None:
    """Why a run cannot be trained in a stack; None if it can."""
    config = resolve(config)
    if config.dynamics == "imp":
        return "imp trains a network for each of its levels"
    if config.mixup:
        return "mixup draws by the run's seed"
    if config.amp != "off":
        return f"it is in mixed precision ({config.amp})"
    return _no_chain(config.model, config.dataset, config.image_size, config.norm, config.bias)


@cache
def _no_chain(model: str, dataset: str, image_size: int | None, norm: str, bias: bool) -> str | None:
    config = RunConfig(model=model, dataset=dataset, norm=norm, bias=bias)  # type: ignore[arg-type]
    found = describe_dataset(dataset, image_size) if dataset in list_datasets() else None
    try:
        chain_of(plain_network(config, found or _USUAL, "meta"))
    except NotAChain as error:
        return str(error)
    return None


def _shared(job: Job) -> str:
    """Equal for jobs that may be one stack."""
    config = job.config
    fields = {name: value for name, value in to_dict(config).items() if name not in _OWN}
    seed = config.seed if config.batch_seed is None else config.batch_seed
    return repr((fields, seed, job.arguments))


def _order(job: Job) -> tuple[bool, bool, str, int, str]:
    config = job.config
    return config.projection is None, config.density is not None, config.offset or "", config.seed, job.name
