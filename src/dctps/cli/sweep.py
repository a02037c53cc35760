"""`dctps sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from dctps.cli.common import USAGE_ERROR, Machine, print_note


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
    workers: int = 1
    """runs at a time, each in a process of its own; several may share a GPU"""
    preview: bool = False
    """only say how many runs are left and how long they will take"""
    progress: bool = True
    """show a bar on a terminal"""
    machine: Machine = field(default_factory=lambda: Machine(threads=1))

    def perform(self, argv: Sequence[str]) -> int:
        """Do what is left of the sweep."""
        from dctps.data import load_dataset  # noqa: PLC0415
        from dctps.experiments.grid import grid, parse_fields, read_tables  # noqa: PLC0415
        from dctps.experiments.sweep import look_ahead, run_sweep, timed  # noqa: PLC0415

        shared, tables = ({}, [{}]) if self.file is None else read_tables(self.file)
        runs = grid(*tables, shared=shared | parse_fields(self.fields))
        machine, threads = self.machine, self.machine.threads or 1
        if machine.download:  # once, not by every worker
            for dataset in {config.dataset for config in runs.values()}:
                load_dataset(dataset, machine.data_dir, download=True)
        if self.preview:
            outlook = look_ahead(runs, self.out, trial=timed(machine.data_dir, machine.device, threads))
            for title, names in vars(outlook).items():
                if isinstance(names, list):
                    print(*(f"{title:<9}{name}" for name in names), sep="\n", end="\n" if names else "")
            print(outlook)
            return 0
        print_note(str(look_ahead(runs, self.out)))
        result = run_sweep(
            runs,
            self.out,
            workers=self.workers,
            threads=threads,
            data_dir=machine.data_dir,
            device=machine.device,
            progress=self.progress,
            on_note=_print_above_bar,
        )
        print(f"{len(result.finished)} of {len(runs)} runs are finished in {self.out}")
        for name, message in result.failed.items():
            print(f"dctps: error: {name}: {message}", file=sys.stderr)
        return USAGE_ERROR if result.failed else 0


def _print_above_bar(line: str) -> None:
    from tqdm import tqdm  # noqa: PLC0415

    tqdm.write(line)
