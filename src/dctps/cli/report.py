"""`dctps report` and `dctps evaluate`: what a network is, and what the saved networks of a run reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dctps.cli.common import Machine
from dctps.experiments.config import RunConfig, differences
from dctps.experiments.records import CONFIG
from dctps.experiments.unused import refuse_unused


@dataclass(frozen=True)
class Report:
    """Compare runs in a table, or count the weights, trained numbers and bytes of one network.

    Given folders of runs it prints a line for each setting, with the mean and the spread over its runs. Given
    one run folder, or the flags of a network alone, it counts. With `--backend` say instead which path each
    layer's calls take on this machine, at `--batch-size`. With `--html` write a page about the runs: tables,
    figures, configuration, environment.

    No data files are read and nothing is trained.
    """

    folders: Positional[tuple[Path, ...]] = ()
    """run folders, or folders of them; what a network is then comes from there, not from the flags below"""
    by: str | None = None
    """fields of `dctps train` for the lines of the table, such as offset,alpha; run for each run apart (None:
    those that tell the runs apart, the seed aside)"""
    format: Literal["text", "csv", "markdown"] = "text"
    """of the table"""
    html: Path | None = None
    """write a page about the runs in the folders to this file"""
    file: Path | None = None
    """of table and page: the sweep file (TOML), to show which of its runs are missing"""
    backend: bool = False
    """say which path each layer takes, dense, transform or native, and what the rule estimates of each"""
    run: RunConfig = field(default_factory=RunConfig)
    classes: int | None = None
    """outputs of the network (None: those of the data set)"""
    in_channels: int | None = None
    """channels of the images (None: those of the data set)"""

    def perform(self, argv: Sequence[str]) -> int:
        """Print the table, the report or the explanation, or write the page."""
        sizes = {"classes": self.classes, "in_channels": self.in_channels}
        given = [
            *differences(self.run, RunConfig()),
            *(name for name, size in sizes.items() if size is not None),
        ]
        of_runs = self.html is not None or self.by is not None or self.format != "text"
        if given and (self.folders or of_runs):
            flag = f"--{given[0].replace('_', '-')}"
            raise ValueError(f"{flag} describes a network, and the folder has its own: leave one of them out")
        if of_runs and not self.folders:
            raise ValueError("--by, --format and --html need the folder of a sweep, or of runs")
        one = self.folders[0] if len(self.folders) == 1 else None
        of_runs |= self.file is not None or (bool(self.folders) and (one is None or not _is_run(one)))
        if of_runs:
            if self.backend:
                raise ValueError("--backend is of one network: give its run folder and no --html, --by, ...")
            return self._report_runs()
        from dctps.experiments.network import explain_training, network_for_report  # noqa: PLC0415
        from dctps.experiments.run import describe_run, explain_run  # noqa: PLC0415
        from dctps.reporting import report  # noqa: PLC0415

        if one is None:
            refuse_unused(self.run)
            whole = network_for_report(self.run, self.classes, self.in_channels)
            print(explain_training(*whole) if self.backend else report(whole[1]))
        else:
            print(explain_run(one) if self.backend else describe_run(one))
        return 0

    def _report_runs(self) -> int:
        from dctps.analysis.compare import FORMATS, compare  # noqa: PLC0415
        from dctps.analysis.fates import read_fates  # noqa: PLC0415
        from dctps.analysis.sweep_report import write_report  # noqa: PLC0415
        from dctps.sweeps.grid import grid, read_tables  # noqa: PLC0415

        shared, tables = ({}, []) if self.file is None else read_tables(self.file)
        wanted = grid(*tables, shared=shared) if tables else None
        if self.html is not None:
            write_report(*self.folders, file=self.html, wanted=wanted)
            print(self.html)
            return 0
        by = None if self.by is None else [name.strip().replace("-", "_") for name in self.by.split(",")]
        print(FORMATS[self.format](compare(read_fates(*self.folders, wanted=wanted), by)))
        return 0


def _is_run(folder: Path) -> bool:
    """Whether it holds one; what cannot be looked at is one, so that the message is about it."""
    try:
        return (folder / CONFIG).exists() or not folder.is_dir()
    except OSError:
        return True


@dataclass(frozen=True)
class Evaluate:
    """Test the saved networks of a finished run again."""

    folder: Positional[Path]
    """the run folder"""
    machine: Machine = field(default_factory=Machine)

    def perform(self, argv: Sequence[str]) -> int:
        """Print the metrics of each saved network."""
        from dctps.experiments.run import evaluate_run  # noqa: PLC0415

        for name, metrics in evaluate_run(self.folder, **vars(self.machine)).items():
            print(f"{name:<5} test accuracy {metrics.accuracy:.4f}  test loss {metrics.loss:.4f}")
        return 0
