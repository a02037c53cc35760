"""Means and standard deviations over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from dctps.analysis.runs import Run
from dctps.experiments.config import RunConfig


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed alone: the values of those that have one, in the order of their seeds.

    There should be `wanted` of them; `note` says why some are missing, where that is known.
    """

    values: tuple[float, ...]
    wanted: int
    note: str = ""

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Their mean; None where there are none."""
        return math.fsum(self.values) / self.n if self.values else None

    @property
    def std(self) -> float | None:
        """Their standard deviation, sqrt(sum (x - mean)^2 / (n - 1)); None below two."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def missing(self) -> bool:
        """Whether there are none."""
        return not self.values

    @property
    def reason(self) -> str:
        """Why there are fewer than wanted; empty where there are not."""
        return "" if self.n == self.wanted else self.note or "not run yet"

    def __str__(self) -> str:
        """In percent: `"68.4 ± 0.3"`, with `(n=2 of 3)` where runs are missing, `"missing"` where all are."""
        if self.mean is None:
            return "missing"
        text = f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")
        return text if self.n == self.wanted else f"{text} (n={self.n} of {self.wanted})"


def setting(config: RunConfig) -> RunConfig:
    """What runs over several seeds have in common: everything else; as a key, `config` with the seed 0."""
    return replace(config, seed=0)


def over_seeds(
    runs: Iterable[Run],
    value: Callable[[Run], float | None],
    wanted: Iterable[RunConfig] = (),
    notes: Mapping[RunConfig, str] | None = None,
) -> dict[RunConfig, Cell]:
    """A cell of `value` for each setting, in the order of `wanted`, then of `runs`.

    Args:
        runs: at most one of each configuration.
        value: of a run; None where it has none, as before it is finished.
        wanted: resolved configurations that should be there; a setting without any run is a missing cell.
        notes: of configurations, why their runs are missing.
    """
    runs, notes = list(runs), notes or {}
    values = {run.config: found for run in runs if (found := value(run)) is not None}
    settings: dict[RunConfig, list[RunConfig]] = {}
    for config in dict.fromkeys([*wanted, *(run.config for run in runs)]):
        settings.setdefault(setting(config), []).append(config)
    cells = {}
    for key, configs in settings.items():
        own = tuple(values[c] for c in sorted(configs, key=lambda c: c.seed) if c in values)
        reasons = (notes[c] for c in configs if c in notes and c not in values)
        cells[key] = Cell(own, len(configs), next(reasons, ""))
    return cells
