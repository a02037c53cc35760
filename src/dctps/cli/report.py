"""`dctps report` and `dctps evaluate`: what a network is, and what the saved networks of a run reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from dctps.cli.common import Machine
from dctps.experiments.config import RunConfig, differences
from dctps.experiments.unused import refuse_unused


@dataclass(frozen=True)
class Report:
    """Count weights, trained numbers and bytes, of a run folder or of a network that the flags describe.

    With `--backend` say instead which path each layer's calls take on this machine, at `--batch-size`. With
    `--html` write a page about a sweep's folder, or a run's: tables, figures, configuration, environment.

    No data files are read and nothing is trained.
    """

    folder: Positional[Path | None] = None
    """a run folder; what the network is then comes from there, not from the flags below"""
    html: Path | None = None
    """write a page about the runs in the folder to this file"""
    file: Path | None = None
    """of that page: the sweep file (TOML), to show which of its runs are missing"""
    backend: bool = False
    """say which path each layer takes, dense, transform or native, and what the rule estimates of each"""
    run: RunConfig = field(default_factory=RunConfig)
    classes: int | None = None
    """outputs of the network (None: those of the data set)"""
    in_channels: int | None = None
    """channels of the images (None: those of the data set)"""

    def perform(self, argv: Sequence[str]) -> int:
        """Print the report or the explanation, or write the page."""
        sizes = {"classes": self.classes, "in_channels": self.in_channels}
        given = [
            *differences(self.run, RunConfig()),
            *(name for name, size in sizes.items() if size is not None),
        ]
        if given and (self.folder is not None or self.html is not None):
            flag = f"--{given[0].replace('_', '-')}"
            raise ValueError(f"{flag} describes a network, and the folder has its own: leave one of them out")
        if self.html is not None:
            if self.backend:
                raise ValueError("--backend is not of the page: give one of --html and --backend")
            return self._write_page(self.html)
        if self.file is not None:
            raise ValueError("--file is for the page of a sweep: add --html")
        from dctps.experiments.network import explain_training, network_for_report  # noqa: PLC0415
        from dctps.experiments.run import describe_run, explain_run  # noqa: PLC0415
        from dctps.reporting import report  # noqa: PLC0415

        if self.folder is None:
            refuse_unused(self.run)
            whole = network_for_report(self.run, self.classes, self.in_channels)
            print(explain_training(*whole) if self.backend else report(whole[1]))
        else:
            print(explain_run(self.folder) if self.backend else describe_run(self.folder))
        return 0

    def _write_page(self, html: Path) -> int:
        from dctps.analysis.sweep_report import write_report  # noqa: PLC0415
        from dctps.sweeps.grid import grid, read_tables  # noqa: PLC0415

        if self.folder is None:
            raise ValueError("--html needs the folder of a sweep, or of a run")
        shared, tables = ({}, []) if self.file is None else read_tables(self.file)
        write_report(self.folder, html, grid(*tables, shared=shared) if tables else None)
        print(html)
        return 0


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
