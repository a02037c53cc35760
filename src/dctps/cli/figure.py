"""`dctps figure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dctps.cli.common import USAGE_ERROR
from dctps.cli.sweep import Crew


@dataclass(frozen=True)
class Figure:
    """Make a figure of the paper: train what its runs lack, then draw it as PNG and PDF, with a CSV.

    1: LeNet-5, largest validation accuracy against the weights trained, every method; 2: test accuracy of
    ResNet50 and VGG19; 3: of MobileNetV2 and FixupResNet110.

    The runs go into OUT/runs, where finished ones are left and broken ones go on, as in `dctps sweep`.
    """

    name: Positional[Literal["1", "2", "3"]]
    """of the figure"""
    fields: Positional[tuple[str, ...]] = ()
    """flags of `dctps train` as name=value or name=value,value,... in the place of the sweep file's; model
    and method choose among its runs"""
    scale: Literal["full", "reduced"] = "full"
    """as in the paper, or as a small machine affords"""
    out: Path = Path("figures")
    """folder of the figure's files, and of the runs in runs/"""
    draw_only: bool = False
    """train nothing: draw what is there"""
    crew: Crew = field(default_factory=Crew)

    def perform(self, argv: Sequence[str]) -> int:
        """Do what is left of the figure's sweep, and draw."""
        from dctps.analysis.figures import draw_figure  # noqa: PLC0415
        from dctps.analysis.runs import read_runs  # noqa: PLC0415
        from dctps.analysis.study import keep_failures, read_failures, study_runs  # noqa: PLC0415
        from dctps.analysis.style import require_matplotlib  # noqa: PLC0415

        require_matplotlib()  # better now than after the sweep
        runs, folder = study_runs(self.name, self.scale, self.fields), self.out / "runs"
        if self.crew.preview:
            self.crew.look_ahead(runs, folder)
            return 0
        failed: dict[str, str] = {}
        if not self.draw_only:
            failed = self.crew.train(runs, folder).failed
            keep_failures(folder, runs, failed)
        notes = read_failures(folder, runs)
        for path in draw_figure(self.name, read_runs(folder), list(runs.values()), notes, self.out):
            print(path)
        return USAGE_ERROR if failed else 0
