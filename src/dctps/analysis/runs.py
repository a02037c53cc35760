"""Run folders as rows of a table: what each run was and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.folder import CONFIG, METRICS, SUMMARY, RunFolderError, read_config, read_summary
from dctps.experiments.session import Record


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        config: resolved.
        records: of its epochs, as in metrics.jsonl; of imp those of its last level, whose density it is.
        summary: as in summary.json; None for a run that is not finished.
    """

    path: Path
    config: RunConfig
    records: list[Record] = field(repr=False)
    summary: Record | None = field(repr=False)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def max_val_accuracy(self) -> float | None:
        """Largest validation accuracy of any epoch, a fraction; None unless finished and validated."""
        found = [r["val_accuracy"] for r in self.records if r["val_accuracy"] is not None]
        return max(found) if found and self.summary is not None else None

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy after the last epoch, a fraction; None unless finished."""
        return None if self.summary is None else float(self.summary["last_test_accuracy"])

    @property
    def weights_trained(self) -> int | None:
        """Values at the supports, or dimensions of the hyperplane, or all weights; None unless finished."""
        if self.summary is None:
            return None
        counts = self.summary["report"]["trainable"]
        return int(sum(counts.get(kind, 0) for kind in ("values", "dimensions", "dense")))

    @property
    def numbers_trained(self) -> int | None:
        """These with alphas, biases and parameters of norms; None unless finished."""
        return None if self.summary is None else int(sum(self.summary["report"]["trainable"].values()))


def read_runs(*folders: Path | str) -> list[Run]:
    """The runs in some folders, each a run folder or a folder of run folders, in the order of their names.

    A run that is found twice is taken once: the one that is finished, else the first.

    Raises:
        RunFolderError: there is no such folder, or a file of a run is damaged; with its path.
    """
    found: dict[RunConfig, Run] = {}
    for path in (path for folder in folders for path in _run_folders(Path(folder))):
        run = read_run(path)
        known = found.get(run.config)
        if known is None or (known.summary is None and run.summary is not None):
            found[run.config] = run
    return list(found.values())


def read_run(path: Path) -> Run:
    """The run in the folder `path`, finished or not.

    Raises:
        RunFolderError: there is none, or a file of it is damaged.
    """
    config = resolve(read_config(path))
    try:
        lines = (path / METRICS).read_text().splitlines() if (path / METRICS).exists() else []
        records = [dict(json.loads(line)) for line in lines]
        last = max((r["level"] for r in records if "level" in r), default=None)
        records = [r for r in records if r.get("level") == last]
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(
            f"{path / METRICS} cannot be read ({error}): delete the folder and train again"
        ) from None
    return Run(path, config, records, read_summary(path) if (path / SUMMARY).exists() else None)


def _run_folders(folder: Path) -> list[Path]:
    if (folder / CONFIG).exists():
        return [folder]
    if not folder.is_dir():
        raise RunFolderError(f"there is no folder {folder}: give one with run folders in it")
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
