"""The run folder: what is written where, by one process at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dctps.checkpoint import save_state
from dctps.experiments.config import RunConfig, differences, from_dict, resolve, to_dict
from dctps.files import write_atomically

Record = dict[str, Any]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LAST = "model.safetensors"
BEST = "best.safetensors"
LOCK = "lock"


class RunFolderError(ValueError):
    """A run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder, which need not exist.
        config: of the run that it is to hold.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = resolve(config)
        self._records: list[Record] = []

    def finished(self) -> Record | None:
        """The summary if this run is finished; None if it is still to be done.

        Raises:
            RunFolderError: the folder holds another run, or something that is no run.
        """
        with self._explained():
            if not self.path.exists():
                return None
            strangers = [file.name for file in self.path.iterdir() if not self._ours(file.name)]
        if not (self.path / CONFIG).exists():
            if strangers:
                raise RunFolderError(
                    f"{self.path} holds files that are no run ({min(strangers)}): choose another --out"
                )
            return None
        theirs = read_config(self.path)
        differing = differences(theirs, self.config)
        if differing:
            listed = ", ".join(f"{name} {a} there and {b} here" for name, (a, b) in differing.items())
            raise RunFolderError(
                f"{self.path} holds a different run ({listed}): choose another --out, or delete it"
            )
        return _read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder, emptied of an earlier attempt, against every other process.

        Raises:
            RunFolderError: another process holds it, or it cannot be written.
        """
        with self._explained():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFolderError(
                    f"another process is writing to {self.path}: wait for it, or choose another --out"
                ) from None
            # It may have been free when `finished` looked and filled since.
            if self.finished() is not None:
                raise RunFolderError(f"another process has just finished the run in {self.path}")
            self._begin()
            yield

    def append(self, record: Record) -> None:
        """Add an epoch to the metrics. The file is written anew, so that it never ends in half a line."""
        self._records.append(record)
        lines = "".join(json.dumps(record) + "\n" for record in self._records)
        self._write(METRICS, lines.encode())

    def save(self, model: nn.Module, name: str, epoch: int) -> None:
        """Write the network as it is after `epoch`, under `LAST` or `BEST`."""
        with self._explained():
            save_state(model, self.path / name, {"config": to_dict(self.config), "epoch": epoch})

    def finish(self, summary: Record) -> None:
        """Write the summary, which makes the run a finished one."""
        self._write(SUMMARY, _to_json(summary))

    def _begin(self) -> None:
        with self._explained():
            for name in (METRICS, LAST, BEST):
                (self.path / name).unlink(missing_ok=True)
        self._records.clear()
        self._write(CONFIG, _to_json(to_dict(self.config)))

    def _write(self, name: str, content: bytes) -> None:
        with self._explained():
            write_atomically(self.path / name, content)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"cannot write to {self.path} ({error.strerror}): choose another --out"
            ) from None

    @staticmethod
    def _ours(name: str) -> bool:
        return name == LOCK or name.endswith(".tmp")


def read_config(path: Path) -> RunConfig:
    """The configuration of the run in the folder `path`.

    Raises:
        RunFolderError: there is no run, or its configuration is damaged.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(f"{path} holds no run (no {CONFIG}): give the folder that `dctps train` wrote")
    try:
        return from_dict(_read_json(path / CONFIG))
    except ValueError as error:
        raise RunFolderError(f"{path / CONFIG} is damaged: {error}") from None


def read_summary(path: Path) -> Record:
    """The summary of the finished run in the folder `path`.

    Raises:
        RunFolderError: there is no run, or it is not finished.
    """
    if not (path / SUMMARY).is_file():
        read_config(path)
        raise RunFolderError(f"the run in {path} is not finished: give its `dctps train` command again")
    return _read_json(path / SUMMARY)


def _to_json(values: Record) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _read_json(path: Path) -> Record:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}): delete the folder and train again") from None
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} holds no JSON object: delete the folder and train again")
    return values
