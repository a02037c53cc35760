"""`dctps report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from dctps.experiments.config import RunConfig


@dataclass(frozen=True)
class Report:
    """Count weights, trained numbers and bytes, of a run folder or of a network that the flags describe.

    With `--backend` say instead which path each layer's calls take on this machine, at `--batch-size`.

    No data files are read and nothing is trained.
    """

    folder: Positional[Path | None] = None
    """a run folder; what the network is then comes from there, not from the flags below"""
    backend: bool = False
    """say which path each layer takes, dense, transform or native, and what the rule estimates of each"""
    run: RunConfig = field(default_factory=RunConfig)
    classes: int | None = None
    """outputs of the network (None: those of the data set)"""
    in_channels: int | None = None
    """channels of the images (None: those of the data set)"""

    def perform(self, argv: Sequence[str]) -> int:
        """Print the report or the explanation."""
        from dctps.experiments.network import describe, explain_network  # noqa: PLC0415
        from dctps.experiments.run import describe_run, explain_run  # noqa: PLC0415

        config, sizes = self.run, (self.classes, self.in_channels)
        if self.folder is None:
            print(explain_network(config, *sizes) if self.backend else describe(config, *sizes))
        else:
            print(explain_run(self.folder) if self.backend else describe_run(self.folder))
        return 0
