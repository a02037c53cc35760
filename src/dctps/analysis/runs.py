"""Run folders as rows of a table: what each run was and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.records import (
    CONFIG,
    METRICS,
    SUMMARY,
    Record,
    RunFolderError,
    find_summary,
    need,
    read_config,
    read_metrics,
)


@dataclass(frozen=True)
class Run:
    """One run folder: its resolved configuration, what metrics.jsonl says of its epochs, and its summary.

    Of imp the records are those of its last level, whose density it is. The summary is None until it is
    finished.
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


def read_runs(*folders: Path | str, on_damage: Callable[[str, str], None] | None = None) -> list[Run]:
    """The runs in some folders, each a run folder or a folder of run folders, in the order of their names.

    A run that is found twice is taken once: the one that is finished, else the first. `on_damage` is called
    with the name of each run folder that cannot be read, and the reason. Without it that is a
    `RunFolderError`, as is a folder that is not there.
    """
    found: dict[RunConfig, Run] = {}
    for path in (path for folder in folders for path in _run_folders(Path(folder))):
        try:
            run = read_run(path)
        except RunFolderError as error:
            if on_damage is None:
                raise
            on_damage(path.name, str(error))
            continue
        known = found.get(run.config)
        if known is None or (known.summary is None and run.summary is not None):
            found[run.config] = run
    return list(found.values())


def read_run(path: Path) -> Run:
    """The run in the folder `path`, finished or not; `RunFolderError` if a file is missing or of no use."""
    config = resolve(read_config(path))
    records = read_metrics(path)
    for record in records:
        need(path / METRICS, record, "epoch", "val_accuracy", "test_accuracy")
    last = max((r["level"] for r in records if "level" in r), default=None)
    records = [r for r in records if r.get("level") == last]
    summary = find_summary(path)
    if summary is not None:
        need(path / SUMMARY, summary, "last_test_accuracy", "report.trainable")
    return Run(path, config, records, summary)


def _run_folders(folder: Path) -> list[Path]:
    try:
        if (folder / CONFIG).exists():
            return [folder]
        if not folder.is_dir():
            raise RunFolderError(f"there is no folder {folder}: give one with run folders in it")
        return sorted(path for path in folder.iterdir() if _holds_run(path))
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be read ({error.strerror}): make it readable") from None


def _holds_run(path: Path) -> bool:
    try:
        return (path / CONFIG).exists()
    except PermissionError:  # of a folder that may well hold one; `read_run` says so
        return True
