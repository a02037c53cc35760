"""`dctps sweep`, and what `dctps figure` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from dctps.cli.common import USAGE_ERROR, Machine, print_failures, print_note

if TYPE_CHECKING:
    from dctps.sweeps.events import Executor
    from dctps.sweeps.grid import Runs


@dataclass(frozen=True)
class Execution:
    """How the runs of a sweep are done; no part of what they are."""

    workers: int | None = None
    """runs at a time, each in a process of its own; several may share a GPU (None: 1; on Ray all that fit)"""
    stack: int = 1
    """runs that each process trains together on shared batches, where their networks allow it: many times
    faster for small ones; runs of different seeds share batches with batch_seed=0"""
    ray: str | None = None
    """do the runs as tasks of Ray: local, auto (the cluster that this machine is in) or HOST:PORT"""
    runs_per_gpu: int = 1
    """on Ray, runs, or stacks of them, that share a GPU"""
    tensorboard: bool = False
    """write the metrics of each run as events for TensorBoard too"""
    preview: bool = False
    """only say how many runs are left and how long they will take"""
    progress: bool = True
    """show a bar on a terminal"""
    machine: Machine = field(default_factory=lambda: Machine(threads=1))

    def train(self, runs: Runs, out: Path) -> dict[str, str]:
        """Do what is left of the runs; gives the error of each that has failed, by name."""
        from tqdm import tqdm  # noqa: PLC0415

        from dctps.sweeps.sweep import look_ahead, run_sweep  # noqa: PLC0415

        executor = self._prepare(runs)
        print_note(str(look_ahead(runs, out)))
        result = run_sweep(
            runs, out, threads=self.machine.threads or 1, data_dir=self.machine.data_dir,
            workers=(1 if self.ray is None else len(runs)) if self.workers is None else self.workers,
            device=self.machine.device, progress=self.progress, tensorboard=self.tensorboard,
            executor=executor, on_note=tqdm.write,
        )  # fmt: skip
        print(f"{len(result.finished)} of {len(runs)} runs are finished in {out}")
        print_failures(result.failed)
        return result.failed

    def look_ahead(self, runs: Runs, out: Path) -> int:
        """Say what is left of the runs, and how long it will take."""
        from dctps.benchmarking.trial import timed  # noqa: PLC0415
        from dctps.stacks.executors import grouped  # noqa: PLC0415
        from dctps.sweeps.sweep import look_ahead  # noqa: PLC0415

        self._prepare(runs)
        trial = timed(self.machine.data_dir, self.machine.device, self.machine.threads or 1)
        split = partial(grouped, size=self.stack, workers=self.workers or 1)
        outlook = look_ahead(runs, out, trial=trial, split=split)
        for title, names in vars(outlook).items():
            if isinstance(names, list):
                print(*(f"{title:<9}{name}" for name in names), sep="\n", end="\n" if names else "")
        print(outlook)
        return 0

    def _prepare(self, runs: Runs) -> Executor:
        """The executor; refuses flags that cannot be, and downloads the data where asked."""
        from dctps.data import load_dataset  # noqa: PLC0415
        from dctps.experiments.network import check_names  # noqa: PLC0415
        from dctps.stacks import on_ray, stacked  # noqa: PLC0415
        from dctps.sweeps.workers import execute  # noqa: PLC0415

        check_names(runs.values())
        for name, count in (("workers", self.workers), ("threads", self.machine.threads)):
            if count is not None and count < 1:
                raise ValueError(f"--{name} must be at least 1, got {count}")
        if self.ray is None and self.runs_per_gpu != 1:
            raise ValueError("--runs-per-gpu is for sweeps on Ray: add --ray, or use --workers")
        executor: Executor = execute if self.stack == 1 else stacked(self.stack)
        if self.ray is not None:
            executor = on_ray(self.ray, runs_per_gpu=self.runs_per_gpu, stack=self.stack)
        if self.machine.download:  # once, not by every worker
            for dataset in {config.dataset for config in runs.values()}:
                load_dataset(dataset, self.machine.data_dir, download=True)
        return executor


@dataclass(frozen=True)
class Sweep:
    """Train every combination of a grid, each run in a folder of its own.

    Finished runs are skipped, broken ones go on, and where one fails the others still run. For example
    `dctps sweep method=dctps,dense density=0.05,0.01 seed=0,1,2 epochs=5 --workers 2`.
    """

    fields: Positional[tuple[str, ...]] = ()
    """flags of `dctps train` as name=value, or name=value,value,... to take each in turn"""
    file: Path | None = None
    """a sweep file (TOML), whose grids these fields complete"""
    out: Path = Path("runs")
    """folder of the run folders"""
    execution: Execution = field(default_factory=Execution)

    def perform(self, argv: Sequence[str]) -> int:
        """Do what is left of the sweep."""
        from dctps.analysis.figure_runs import FAILED, keep_failures  # noqa: PLC0415
        from dctps.sweeps.grid import grid, parse_fields, read_tables  # noqa: PLC0415

        if self.file is None and not self.fields:
            raise ValueError(
                "say what to sweep: fields as name=value,value, such as method=dctps,dense density=0.05,0.01 "
                "(`dctps sweep --help`), or a sweep file with --file"
            )
        shared, tables = ({}, [{}]) if self.file is None else read_tables(self.file)
        runs = grid(*tables, shared=shared | parse_fields(self.fields))
        if self.execution.preview:
            return self.execution.look_ahead(runs, self.out)
        failed = self.execution.train(runs, self.out)
        if failed or (self.out / FAILED).exists():
            keep_failures(self.out, runs, failed)
        return USAGE_ERROR if failed else 0
