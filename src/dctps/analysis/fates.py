"""What became of the runs in some folders: finished, unfinished, failed or missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dctps.analysis.figure_runs import FAILED, read_failed, read_reasons
from dctps.analysis.runs import Run, read_runs
from dctps.experiments.config import RunConfig, resolve
from dctps.sweeps.grid import Runs


@dataclass(frozen=True)
class Fates:
    """Runs that are there, and runs that should be; `reasons` say by name why some have failed.

    Reasons may be of names without a configuration: of a folder that cannot be read, or a run of an earlier
    version.
    """

    runs: Sequence[Run]
    wanted: Runs = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[RunConfig, str]:
        """Of all runs whose configuration is known."""
        names = {config: name for name, config in self.wanted.items()}
        return names | {run.config: run.name for run in self.runs}

    @property
    def notes(self) -> dict[RunConfig, str]:
        """The reasons by configuration."""
        return {config: self.reasons[name] for config, name in self.names.items() if name in self.reasons}

    @property
    def states(self) -> dict[RunConfig, str]:
        """Of each configuration: finished, or unfinished, failed or missing with details."""
        found = {run.config: run for run in self.runs}
        return {config: self._state(found.get(config), name) for config, name in self.names.items()}

    def unknown(self) -> Iterator[tuple[str, str]]:
        """Names without a configuration, and the state of each."""
        known = set(self.names.values())
        yield from ((name, f"failed: {reason}") for name, reason in self.reasons.items() if name not in known)

    def count(self) -> dict[str, int]:
        """How many are finished, unfinished, failed and missing."""
        states = [*self.states.values(), *(state for _, state in self.unknown())]
        kinds = ("finished", "unfinished", "failed", "missing")
        return {kind: sum(state.startswith(kind) for state in states) for kind in kinds}

    def _state(self, run: Run | None, name: str) -> str:
        if run is not None and run.summary is not None:
            return "finished"
        reason = self.reasons.get(name)
        saved = "" if run is None else f"epoch {len(run.records)} of {run.config.epochs}"
        if reason is not None:
            return f"failed{f' after {saved}' if saved else ''}: {reason}"
        return f"unfinished, {saved}" if saved else "missing"


def read_fates(*folders: Path, wanted: Runs | None = None) -> Fates:
    """The fates of the runs in `folders`, each a run folder or a folder of them, and of those `wanted`.

    Raises:
        ValueError: there are neither runs nor reports of any; as `RunFolderError`, a folder is not there.
    """
    reasons: dict[str, str] = {}
    runs = read_runs(*folders, on_damage=reasons.__setitem__)
    failed: Runs = {}
    for folder in folders:
        try:
            told, configs = read_reasons(folder), read_failed(folder)
            reasons, failed = told | reasons, failed | configs
        except ValueError as error:
            reasons[FAILED] = str(error)
    everything = failed | {name: resolve(config) for name, config in (wanted or {}).items()}
    if not runs and not everything and not reasons:
        shown = ", ".join(map(str, folders))
        raise ValueError(f"{shown} holds no run folders: give the --out of a `dctps train` or `dctps sweep`")
    return Fates(runs, everything, reasons)
