"""Which runs a figure is of, from sweep files that come with the program; which runs of a sweep failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dctps.data import DataError
from dctps.experiments.config import RunConfig, from_dict, resolve, to_dict
from dctps.experiments.records import unreadable
from dctps.files import make_folder, write_atomically
from dctps.names import lookup
from dctps.sweeps.grid import Runs, grid, parse_fields, read_tables

FAILED = "failed.json"
_SWEEPS = Path(__file__).parent / "sweeps"


@dataclass(frozen=True)
class FigureRuns:
    """What a figure is made of: runs to train, to examine (before and after), and to measure the costs of."""

    trained: Runs
    examined: Runs
    costed: Runs

    @property
    def runs(self) -> Runs:
        """All of them."""
        return self.trained | self.examined | self.costed


# The sweep files of each figure: of the runs that are trained, examined, and costed.
_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "1": (("figure1",), (), ()),
    "2": (("figure2",), (), ()),
    "3": (("figure3",), (), ()),
    "4": (("figure4-trained",), ("figure4", "figure4-trained"), ()),
    "5": (("figure2",), ("figure4",), ()),
    "table1": (("figure2",), (), ("figure2",)),
}


def runs_of_figure(figure: str, scale: str, fields: Sequence[str] = ()) -> FigureRuns:
    """The runs of a figure.

    Args:
        figure: `"1"` to `"5"`, or `"table1"`.
        scale: `"full"` or `"reduced"`.
        fields: `name=value` or `name=value,value`: of `model` and `method`, which of the files' runs; of any
            other field, what is to stand in the place of the files' values.

    Raises:
        ValueError: no such figure, scale or field, no run is left, or a combination that no run can have.
    """
    chosen = parse_fields(fields)
    only = {name: chosen.pop(name) for name in ("model", "method") if name in chosen}
    files = lookup("figure", _FILES, figure)
    parts = [{k: v for stem in stems for k, v in _runs(stem, scale, chosen).items()} for stems in files]
    for name, value in only.items():
        values = value if isinstance(value, list) else [value]
        there = {getattr(config, name) for runs in parts for config in runs.values()}
        if unknown := sorted(set(values) - there):
            raise ValueError(f"figure {figure} has no {name} {unknown[0]!r}: choose from {sorted(there)}")
        parts = [{k: v for k, v in runs.items() if getattr(v, name) in values} for runs in parts]
    if not any(parts):
        raise ValueError(f"no run of figure {figure} has all of {', '.join(fields)}")
    return FigureRuns(*parts)


def _runs(stem: str, scale: str, chosen: Mapping[str, Any]) -> Runs:
    shared, tables = read_tables(_SWEEPS / f"{stem}-{scale}.toml")
    return grid(*({**table, **chosen} for table in tables), shared=shared)


def for_all(
    work: Callable[..., None], runs: Runs, out: Path, on_note: Callable[[str], None], **options: Any
) -> dict[str, str]:
    """Call `work(config, folder, **options)`, such as `examine`, for each run, whose folder is `out / name`.

    Where one fails, the others go on; why some failed comes back, by name. `on_note` gets a line for each
    run.
    """
    failed = {}
    for count, (name, config) in enumerate(runs.items(), 1):
        try:
            work(config, out / name, **options)
            on_note(f"{name} done ({count} of {len(runs)})")
        except (ValueError, OSError, DataError) as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            on_note(f"{name} failed: {failed[name]}")
    return failed


def keep_failures(out: Path, runs: Runs, failed: Mapping[str, str]) -> None:
    """Write down in a sweep's folder why its runs failed; this replaces older reasons of these runs."""
    try:
        kept = {name: entry for name, entry in _read(out).items() if name not in runs}
    except ValueError:  # a damaged file is written anew
        kept = {}
    new = {name: {"reason": reason, "config": to_dict(runs[name])} for name, reason in failed.items()}
    make_folder(out)
    write_atomically(out / FAILED, (json.dumps(kept | new, indent=1) + "\n").encode())


def read_failures(out: Path, runs: Runs) -> dict[RunConfig, str]:
    """Why some of the runs failed, as `keep_failures` wrote it down."""
    return {runs[name]: reason for name, reason in read_reasons(out).items() if name in runs}


def read_reasons(out: Path) -> dict[str, str]:
    """Why runs of a sweep's folder failed, by name; ValueError if the file of failures is of no use."""
    return {name: str(entry.get("reason", "")) for name, entry in _read(out).items()}


def read_failed(out: Path) -> Runs:
    """The runs that failed, by name, with or without a folder; ValueError if the file is damaged."""
    found = {name: entry["config"] for name, entry in _read(out).items() if "config" in entry}
    try:
        return {name: resolve(from_dict(config)) for name, config in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{out / FAILED} is damaged ({error}): delete it") from None


def _read(out: Path) -> dict[str, dict[str, Any]]:
    """A reason and a configuration of each name; files of an earlier version have the reason alone."""
    path = out / FAILED
    if not path.exists():
        return {}
    try:
        return {
            str(name): dict(entry) if isinstance(entry, dict) else {"reason": str(entry)}
            for name, entry in json.loads(path.read_text()).items()
        }
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it") from None
