"""`dctps evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from dctps.cli.common import Machine, place


@dataclass(frozen=True)
class Evaluate:
    """Test the saved networks of a finished run again."""

    folder: Positional[Path]
    """the run folder"""
    machine: Machine = field(default_factory=Machine)

    def perform(self, argv: Sequence[str]) -> int:
        """Print the metrics of each saved network."""
        from dctps.experiments.run import evaluate_run  # noqa: PLC0415

        for name, metrics in evaluate_run(self.folder, **place(self.machine)).items():
            print(f"{name:<5} test accuracy {metrics.accuracy:.4f}  test loss {metrics.loss:.4f}")
        return 0
