"""The small files of a run folder, read and checked: what they hold is of the kind that a run writes.

All functions raise a `RunFolderError` where a file cannot be used. It says whether the file cannot be read or
is damaged: a missing permission is no reason to train again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dctps.experiments.config import RunConfig, from_dict

CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LAST = "model.safetensors"
BEST = "best.safetensors"

Record = dict[str, Any]

_NUMBER, _MAYBE = (int, float), (int, float, type(None))
# What is there must be of these kinds; a file of an older version may lack some.
_EPOCH = {
    **dict.fromkeys(("epoch", "level", "of_level"), int),
    **dict.fromkeys(("test_accuracy", "train_loss", "train_accuracy", "lr", "seconds"), _NUMBER),
    **dict.fromkeys(("val_accuracy", "val_loss"), _MAYBE),
}
_END = {
    "last_epoch": int,
    "best_epoch": (int, type(None)),
    **dict.fromkeys(("last_test_accuracy", "seconds"), _NUMBER),
    **dict.fromkeys(("best_val_accuracy", "best_test_accuracy"), _MAYBE),
    **dict.fromkeys(("report", "versions"), dict),
    "earlier_environments": list,
}
_REPORT = {"trainable": dict, "rows": list, "disk_bytes": (int, type(None))}
_ROW = {"name": str, "nnz": int, "weights": int, "offset": (str, type(None))}
_DATA = {
    "name": str,
    "sha256": dict,
    **dict.fromkeys(("class_names", "mean", "std"), list),
    **dict.fromkeys(("classes", "channels", "image_size", "train", "test"), int),
}


class RunFolderError(ValueError):
    """A run folder cannot be used; the message says why and what to do."""


def read_config(path: Path) -> RunConfig:
    """The configuration of the run in the folder `path`."""
    values = _read(path / CONFIG)
    if values is None:
        raise RunFolderError(f"{path} holds no run (no {CONFIG}): give the folder that `dctps train` wrote")
    try:
        return from_dict(values)
    except ValueError as error:
        raise damaged(path / CONFIG, error) from None


def read_data(path: Path) -> Record | None:
    """The data of the run in the folder `path`; None for one of a version that did not write them down."""
    values = _read(path / DATA)
    if values is not None:
        _check(path / DATA, values, _DATA)
    return values


def check_data(path: Path, data: Record) -> None:
    """Make sure that the run in the folder `path` is one on `data`, `Dataset.to_dict()`.

    What an older version did not write down is not compared. Mean and deviation may differ in their last
    digits.
    """
    theirs = read_data(path) or {}
    both = [name for name in ("sha256", "mean", "std", "flip") if name in theirs and name in data]
    other = [name for name in both if not _alike(theirs[name], data[name])]
    if not other:
        return
    there, here = (f"{d.get('train')} training and {d.get('test')} test images" for d in (theirs, data))
    known = dict(theirs.get("sha256", {}))
    parts = [part for part, digest in data["sha256"].items() if known.get(part, digest) != digest]
    what = [f"the {part} images or their labels" for part in parts]
    what += [f"{name} {theirs[name]} there and {data[name]} here" for name in other if name != "sha256"]
    raise RunFolderError(
        f"the run in {path} began on other data ({there} there, {here} here; {DATA} has their SHA-256; "
        f"different: {', '.join(what)}): point --data-dir at those, or choose another --out"
    )


def read_metrics(path: Path) -> list[Record]:
    """The records of the epochs that the run in the folder `path` has done."""
    file = path / METRICS
    records = [parse_object(file, line) for line in (read_text(file) or "").splitlines()]
    for record in records:
        _check(file, record, _EPOCH)
    return records


def find_summary(path: Path) -> Record | None:
    """The summary of the run in the folder `path`; None of a run that is not finished."""
    file = path / SUMMARY
    values = _read(file)
    if values is None:
        return None
    _check(file, values, _END)
    report = values.get("report", {})
    _check(file, report, _REPORT)
    _check(file, report.get("trainable", {}), dict.fromkeys(report.get("trainable", {}), int))
    for row in report.get("rows", []):
        _check(file, row, _ROW)
        need(file, row, "name", "nnz", "offset")
    for environment in values.get("earlier_environments", []):
        _check(file, environment, {"versions": dict})
    return values


def read_summary(path: Path) -> Record:
    """The summary of the finished run in the folder `path`, with everything that commands print of it."""
    summary = find_summary(path)
    if summary is None:
        read_config(path)
        raise RunFolderError(f"the run in {path} is not finished: give its `dctps train` command again")
    best = [f"best_{name}" for name in ("epoch", "val_accuracy", "test_accuracy")]
    need(path / SUMMARY, summary, "last_epoch", "last_test_accuracy", *best, "report.trainable")
    return summary


def need(file: Path, values: Record, *names: str) -> None:
    """Make sure that `values`, of `file`, have these fields; `report.trainable` is one within `report`."""
    for name in names:
        value: Any = values
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise damaged(file, f"it has no {name}")
            value = value[part]


def damaged(file: Path, reason: object) -> RunFolderError:
    """The error of a file whose content cannot be used."""
    return RunFolderError(
        f"{file} cannot be read (it is damaged: {reason}): put a whole copy of it back, or delete the folder "
        f"and train again"
    )


def unreadable(file: Path, error: OSError) -> RunFolderError:
    """The error of a file that the system does not give."""
    return RunFolderError(f"{file} cannot be read ({error.strerror}): make it a readable file")


def read_text(file: Path) -> str | None:
    """The text of a file of a run; None where there is none."""
    try:
        return file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise damaged(file, error) from None


def parse_object(file: Path, text: str) -> Record:
    """The JSON object that `text`, of `file`, is."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from None
    if not isinstance(values, dict):
        raise damaged(file, "it holds no JSON object")
    return values


def _read(file: Path) -> Record | None:
    text = read_text(file)
    return None if text is None else parse_object(file, text)


def _check(file: Path, values: Any, kinds: Mapping[str, Any]) -> None:
    """Make sure that what is there is of its kind; of the numbers, losses alone may be infinite."""
    if not isinstance(values, dict):
        raise damaged(file, f"{str(values)[:40]!r} stands where an object should")
    for name, kind in kinds.items():
        if name not in values:
            continue
        value = values[name]
        finite = name.endswith("loss") or not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, kind) or isinstance(value, bool) or not finite:
            raise damaged(file, f"{name} is {str(value)[:40]!r}")


def _alike(a: Any, b: Any) -> bool:
    if not isinstance(a, list) or not isinstance(b, list | tuple):
        return bool(a == b)
    return len(a) == len(b) and all(
        isinstance(x, int | float) and math.isclose(x, y, rel_tol=1e-4) for x, y in zip(a, b, strict=True)
    )
