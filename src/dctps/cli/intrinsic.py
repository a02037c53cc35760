"""`dctps intrinsic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dctps.cli.common import Machine, Output
from dctps.experiments.config import RunConfig


@dataclass(frozen=True)
class Intrinsic:
    """Search the fewest dimensions at which a hyperplane reaches a share of the dense network's accuracy.

    Trains many networks, one folder each, with intrinsic.json beside them; finished ones are used again.
    """

    run: RunConfig = field(default_factory=lambda: RunConfig(method="hyperplane"))
    share: float = 0.9
    """of the dense accuracy, in (0, 1]"""
    dense_accuracy: float | None = None
    """to compare with, as a fraction (None: trains dense networks)"""
    seeds: tuple[int, ...] | None = None
    """of the runs, whose mean counts (None: the seed)"""
    ratio: float = 1.1
    """largest ratio of the dimensions found to a number that is too small"""
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)

    def perform(self, argv: Sequence[str]) -> int:
        """Search, and print what was found."""
        from dctps.experiments.intrinsic import intrinsic_dimension  # noqa: PLC0415

        config, output = self.run, self.output
        if config.density != RunConfig.density:
            raise ValueError(
                f"--density {config.density} would have no effect: the search finds it; leave it out"
            )
        if self.seeds is not None and config.seed != RunConfig.seed:
            raise ValueError(
                f"--seed {config.seed} would have no effect beside --seeds: leave one of the two out"
            )
        found = intrinsic_dimension(
            config, out=output.out or Path("runs") / f"intrinsic-{config.model}-{config.dataset}",
            share=self.share, dense_accuracy=self.dense_accuracy, seeds=self.seeds, ratio=self.ratio,
            on_accuracy=lambda name, accuracy: print(f"{name:<8} accuracy {accuracy:.4f}", flush=True),
            progress=output.progress, checkpoint_interval=output.checkpoint_interval, **vars(self.machine),
        )  # fmt: skip
        reached = found["intrinsic_dimension"]
        dimension = f"d = {reached:,}" if reached else "no d up to this"
        print(
            f"{dimension} of {found['weights']:,} weights reaches {found['target']:.4f}, "
            f"{found['share']:g} of {found['dense_accuracy']:.4f}"
        )
        return 0
