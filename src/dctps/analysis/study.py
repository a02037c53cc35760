"""Which runs a figure is of: sweep files that come with the program, in full and for a small machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dctps.experiments.config import RunConfig
from dctps.experiments.grid import Runs, grid, parse_fields, read_tables
from dctps.files import make_folder, write_atomically

SCALES = ("full", "reduced")
_FAILED = "failed.json"
_SWEEPS = Path(__file__).parent / "sweeps"


def sweep_file(figure: str, scale: str) -> Path:
    """The sweep file of a figure, such as `"1"`, at a scale, `"full"` or `"reduced"`.

    Raises:
        ValueError: there is none.
    """
    path = _SWEEPS / f"figure{figure}-{scale}.toml"
    if not path.exists():
        there = sorted(file.stem for file in _SWEEPS.glob("*.toml"))
        raise ValueError(f"figure {figure} has no sweep {scale!r}; there are {', '.join(there)}")
    return path


def study_runs(figure: str, scale: str, fields: Sequence[str] = ()) -> Runs:
    """The runs of a figure by name.

    Args:
        figure: as for `sweep_file`.
        scale: as for `sweep_file`.
        fields: `name=value` or `name=value,value`: of `model` and `method`, which of the file's runs; of any
            other field, what is to stand in the place of the file's value.

    Raises:
        ValueError: no such figure or field, no run is left, or a combination that no run can have.
    """
    shared, tables = read_tables(sweep_file(figure, scale))
    chosen = parse_fields(fields)
    only = {name: chosen.pop(name) for name in ("model", "method") if name in chosen}
    runs = grid(*(table | chosen for table in tables), shared=shared)
    for name, values in only.items():
        those = values if isinstance(values, list) else [values]
        there = {getattr(config, name) for config in runs.values()}
        if not there.issuperset(those):
            unknown = min(set(those) - there)
            raise ValueError(f"figure {figure} has no {name} {unknown!r}: choose from {sorted(there)}")
        runs = {key: config for key, config in runs.items() if getattr(config, name) in those}
    if not runs:
        raise ValueError(f"no run of figure {figure} has all of {', '.join(fields)}")
    return runs


def keep_failures(out: Path, runs: Runs, failed: Mapping[str, str]) -> None:
    """Write down in a sweep's folder why its runs failed, in the place of what was said of them before."""
    kept = {name: reason for name, reason in _read(out).items() if name not in runs}
    make_folder(out)
    write_atomically(out / _FAILED, (json.dumps(kept | dict(failed), indent=1) + "\n").encode())


def read_failures(out: Path, runs: Runs) -> dict[RunConfig, str]:
    """Why some of the runs failed, as `keep_failures` wrote it down."""
    return {runs[name]: reason for name, reason in _read(out).items() if name in runs}


def _read(out: Path) -> dict[str, str]:
    path = out / _FAILED
    if not path.exists():
        return {}
    try:
        return {str(name): str(reason) for name, reason in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it") from None
