"""`dctps figure`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dctps.cli.common import USAGE_ERROR, print_failures, print_note
from dctps.cli.sweep import Execution

if TYPE_CHECKING:
    from dctps.analysis.figure_runs import FigureRuns


@dataclass(frozen=True)
class Figure:
    """Make a figure of the paper: train what its runs lack, then draw it as PNG and PDF, with a CSV.

    1: LeNet-5, largest validation accuracy against the weights trained, every method; 2: test accuracy of
    ResNet50 and VGG19; 3: of MobileNetV2 and FixupResNet110; 4: singular values of ResNet50's Jacobian before
    training; 5: weights that train in each of its layers; table1: accuracy lost and measured cost, of the
    runs of figure 2.

    The runs go into OUT/runs, where finished ones are left and broken ones go on, as in `dctps sweep`.
    """

    name: Positional[Literal["1", "2", "3", "4", "5", "table1"]]
    """of the figure"""
    fields: Positional[tuple[str, ...]] = ()
    """flags of `dctps train` as name=value or name=value,value,... in the place of the sweep file's; model
    and method choose among its runs"""
    scale: Literal["full", "reduced"] = "full"
    """as in the paper, or as a small machine affords"""
    x: Literal["density", "trained"] = "density"
    """what the axis of figures 1, 2 and 3 shows: density, or all numbers trained, alphas, biases and norms
    included"""
    out: Path = Path("figures")
    """folder of the figure's files, and of the runs in runs/"""
    draw_only: bool = False
    """train nothing: draw what is there"""
    execution: Execution = field(default_factory=Execution)

    def perform(self, argv: Sequence[str]) -> int:
        """Do what is left of the figure's sweep, and draw."""
        from dctps.analysis.figure_runs import read_failures, runs_of_figure  # noqa: PLC0415
        from dctps.analysis.figures import draw_figure, write_origin  # noqa: PLC0415
        from dctps.analysis.runs import read_runs  # noqa: PLC0415
        from dctps.analysis.style import require_matplotlib  # noqa: PLC0415

        if self.x != "density" and self.name not in ("1", "2", "3"):
            raise ValueError(
                f"--x {self.x} is for figures 1, 2 and 3, and figure {self.name} has another axis"
            )
        require_matplotlib()  # better now than after the sweep
        wanted, folder = runs_of_figure(self.name, self.scale, self.fields), self.out / "runs"
        if self.execution.preview:
            return self.execution.look_ahead(wanted.trained, folder)
        failed = {} if self.draw_only else self._do(wanted, folder)
        try:
            notes = read_failures(folder, wanted.runs)
        except ValueError as error:
            print_note(str(error))
            notes = {}
        runs = read_runs(folder, on_damage=lambda name, reason: print_note(f"{name} is left out: {reason}"))
        files = draw_figure(self.name, runs, list(wanted.runs.values()), notes, self.out, self.x)
        # Without what says where: this command makes the same figure elsewhere.
        axis = [] if self.x == "density" else ["--x", self.x]
        command = shlex.join(["dctps", "figure", self.name, *self.fields, "--scale", self.scale, *axis])
        files.append(write_origin(self.name, self.out, command, wanted.runs))
        print(*files, sep="\n")
        return USAGE_ERROR if failed else 0

    def _do(self, wanted: FigureRuns, folder: Path) -> dict[str, str]:
        """Train and examine what is left, and write down what failed."""
        from dctps.analysis.figure_runs import for_all, keep_failures  # noqa: PLC0415
        from dctps.benchmarking.costs import measure_cost  # noqa: PLC0415
        from dctps.benchmarking.initial import examine  # noqa: PLC0415

        machine = self.execution.machine
        failed = self.execution.train(wanted.trained, folder) if wanted.trained else {}
        choices = {"data_dir": machine.data_dir, "threads": machine.threads}
        missed = for_all(examine, wanted.examined, folder, print_note, device=machine.device, **choices)
        missed |= for_all(measure_cost, wanted.costed, folder, print_note, **choices)
        print_failures(missed)
        failed |= missed
        keep_failures(folder, wanted.runs, failed)
        return failed
