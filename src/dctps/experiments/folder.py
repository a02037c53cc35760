"""The run folder: what is written where, in which order, by one process at a time.

The order is what makes a run safe from being killed, or from a power cut, at any moment. `write_atomically`
writes each file whole: it holds the old content or the new one, and once the call returns the new one is on
the disk, before anything that comes after it.

1. `config.json`, then `data.json`, and `backends.json` where paths were measured, once each. Without a state
   beside them nothing has been trained, and the run starts at its beginning.
2. `state.safetensors`, after every epoch, and in between where asked for. **It alone says what has
   happened**: it holds all that the rest of the run depends on (`Session.state`), the metrics so far, and the
   best network.
3. After every epoch, once its state is there: `metrics.jsonl`, `model.safetensors`, `best.safetensors`. They
   follow from that state, and no later state is written before they are. So a run that goes on from the end
   of an epoch writes all three again. Beside a state from the middle of an epoch `model.safetensors` is as
   the last epoch left it, and the other two follow from this state as well.
4. After the last epoch, once the files of 3 are there: `summary.json`. With it the run is finished.
5. The state is deleted. Should that be missed, the next call deletes it: nothing reads it beside a summary.

Between any two steps a restart therefore finds nothing, a state, or a summary, and goes on as an
uninterrupted run would have done. `lock` is never deleted: the system frees it when its process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dctps.checkpoint import save_state
from dctps.experiments import records
from dctps.experiments.config import RunConfig, differences, from_dict, resolve, to_dict
from dctps.experiments.records import BEST, CONFIG, DATA, LAST, METRICS, SUMMARY, Record, RunFolderError
from dctps.experiments.state import State, StateError, read_state, write_state
from dctps.experiments.unused import unused
from dctps.files import make_folder, write_atomically

STATE = "state.safetensors"
BACKENDS = "backends.json"
REWIND = "rewind.safetensors"  # of a run of imp, whose levels are runs in folders of their own within
LOCK = "lock"

_FORMAT = 1


class RunFolderBusy(RunFolderError):  # noqa: N818
    """Another process is writing to the folder."""


class RunFolder:
    """The folder of one run, which need not exist. What it cannot do is a `RunFolderError`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, resolve(config)
        self.saved_where: str | None = None  # the run stands, in the saved state; for messages
        self._lock: int | None = None

    def finished(self) -> Record | None:
        """The summary if this run is finished, None if it is to be done; refuses another run's folder."""
        with self._explained():
            if not self.path.exists():
                return None
            names = [file.name for file in self.path.iterdir()]
        if CONFIG not in names:
            if strangers := [name for name in names if name != LOCK and not name.endswith(".tmp")]:
                raise RunFolderError(
                    f"{self.path} holds files that are no run ({min(strangers)}): choose another --out"
                )
            return None
        if differing := self._differing(records.read_config(self.path)):
            listed = ", ".join(f"{name} {a} there and {b} here" for name, (a, b) in differing.items())
            raise RunFolderError(
                f"{self.path} holds a different run ({listed}): choose another --out, or delete it"
            )
        return records.find_summary(self.path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder where it is missing, and hold it; `RunFolderBusy` if another process holds it."""
        with self._explained():
            make_folder(self.path)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with self._explained():
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunFolderBusy(
                        f"another process is writing to {self.path}: wait for it, or choose another --out"
                    ) from None
            yield
        finally:
            os.close(self._lock)
            self._lock = None

    def describe(self, data: Record) -> None:
        """Clear away what a killed process left half done, and write down the run and its `data`."""
        with self._explained():
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
        if not (self.path / CONFIG).exists():
            self._write(CONFIG, _to_json(to_dict(self.config)))
        records.check_data(self.path, data)
        if not (self.path / DATA).exists():
            self._write(DATA, _to_json(data))

    def begin(self, data: Record) -> State | None:
        """As `describe`, and give the state that an earlier process saved, if any."""
        self.describe(data)
        if not (self.path / STATE).exists():
            if left := [name for name in (METRICS, LAST, BEST) if (self.path / name).exists()]:
                raise RunFolderError(
                    f"{self.path} has {left[0]} but no {STATE}, so the run cannot go on: "
                    f"put that file back, or delete the folder to train again from the beginning"
                )
            return None
        try:
            state = read_state(self.path / STATE)
            if state.get("format") != _FORMAT:
                raise StateError(
                    f"its format is {state.get('format')}, this version of dctps reads {_FORMAT}"
                )
            if self._differing(from_dict(state["config"])):
                raise StateError(f"it is of a different run than {CONFIG} beside it")
        except OSError as error:
            raise records.unreadable(self.path / STATE, error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(error) from None
        return state

    def save_backends(self, record: Record) -> None:
        """Write down the paths of the layers, before the first step."""
        self._write(BACKENDS, _to_json(record))

    def saved_supports(self) -> dict[str, Tensor] | None:
        """The supports in the saved state, by layer; None where there is none, or `begin` will refuse it."""
        try:
            model = read_state(self.path / STATE)["session"]["model"]
            return {
                name.removesuffix(".support"): t for name, t in model.items() if name.endswith(".support")
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def damaged(self, error: Exception, name: str = STATE) -> RunFolderError:
        """What to tell a person about a file with a state that cannot be used."""
        reason = " ".join(str(error).split())[:200]
        return RunFolderError(
            f"{self.path / name} cannot be used ({reason}): put a whole copy of it back, or delete "
            f"the folder to train again from the beginning"
        )

    def save_state(self, state: State, where: str) -> None:
        """Write the state, from which the run then goes on; `where` it stands, in words."""
        with self._explained():
            write_state(self.path / STATE, {"format": _FORMAT, "config": to_dict(self.config), **state})
        self.saved_where = where

    def save_metrics(self, metrics: list[Record]) -> None:
        """Write the metrics of all epochs so far as a whole, so that the file never ends in half a line."""
        self._write(METRICS, "".join(json.dumps(record) + "\n" for record in metrics).encode())

    def save_model(self, model: nn.Module, name: str, epoch: int) -> None:
        """Write the network as it is after `epoch`, under `LAST` or `BEST`."""
        with self._explained():
            save_state(model, self.path / name, {"config": to_dict(self.config), "epoch": epoch})

    def finish(self, summary: Record) -> None:
        """Write the summary, which makes the run a finished one, and delete the state."""
        self._write(SUMMARY, _to_json(summary))
        self.drop_state()

    def drop_state(self) -> None:
        """Delete the state of a finished run, if it is there and can be deleted: nothing reads it."""
        for name in (STATE, REWIND):
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)

    def _differing(self, theirs: RunConfig) -> dict[str, tuple[Any, Any]]:
        """The fields in which another run's configuration differs, except those without an effect."""
        idle = unused(self.config)
        return {n: v for n, v in differences(resolve(theirs), self.config).items() if n not in idle}

    def _write(self, name: str, content: bytes) -> None:
        with self._explained():
            write_atomically(self.path / name, content)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Check that the folder is still the locked one, and say what an OSError means for the run."""
        try:
            if self._lock is not None:
                there, ours = (self.path / LOCK).stat(), os.fstat(self._lock)
                if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield
        except OSError as error:
            if self._lock is not None and isinstance(error, FileNotFoundError):
                raise RunFolderError(
                    f"{self.path} or its {LOCK} was moved or deleted while the run wrote to it: the same "
                    f"command continues where it was last saved if you put it back, or else starts again"
                ) from None
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = ("free some space, or " if is_full else "") + "choose another --out"
            if self.saved_where is not None:
                remedy = "free some space" if is_full else "make it writable"
                remedy += f", and the same command continues {self.saved_where}"
            raise RunFolderError(f"cannot write to {self.path} ({error.strerror}): {remedy}") from None


def _to_json(values: Record) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
