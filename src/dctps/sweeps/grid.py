"""The runs of a sweep: every combination of the values of a grid, each run under its own name."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from dctps.experiments.config import ResolvedConfig, RunConfig, field_types, resolve, run_name, to_dict
from dctps.experiments.fields import read_word
from dctps.experiments.unused import has_density, refuse_unused
from dctps.names import lookup

Runs = dict[str, ResolvedConfig]

_TABLES = "runs"
_LONGEST_NAME = 180  # file systems end at 255 bytes, and temporary files add some
_LATER = "init", "zero_head"  # fields that came after the first names


def grid(*tables: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> Runs:
    """The runs of one or several grids, by name.

        >>> list(grid({"method": ["dctps", "dense"], "density": [0.1, 0.01]}))
        ['lenet5-digits-dctps-0.1-seed0', 'lenet5-digits-dctps-0.01-seed0', 'lenet5-digits-dense-seed0']

    A run's name says in what it differs from a run of the same network, data, method, density and seed with
    the defaults (`run_name`), so that runs that are added to a sweep rename no other. A method without a
    density ignores the densities of a grid with other methods.

    Args:
        tables: a field of `RunConfig` to its value, or to a list of values that are taken in turn; the first
            field varies slowest. A run that comes up twice, as `dense` does at each density, is one run.
        shared: fields for all tables.

    Raises:
        ValueError: an unknown field, no run, or a combination that no run can have; with its values.
    """
    runs: Runs = {}
    densities: set[float | None] = set()
    for table in tables:
        axes = {name: _axis(name, value) for name, value in {**(shared or {}), **table}.items()}
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            try:
                config = RunConfig(**chosen)
                if "density" in chosen and not has_density(config.method):
                    densities.add(config.density)
                    config = replace(config, density=None)
                refuse_unused(config)
                whole = resolve(config)
            except ValueError as error:
                listed = ", ".join(f"{name}={value}" for name, value in chosen.items())
                raise ValueError(f"the run with {listed}: {error}") from None
            runs[_folder_name(whole)] = whole
    if len(densities) == 1 and all(config.density is None for config in runs.values()):
        raise ValueError(
            f"density {densities.pop()} would have no effect (these methods have none): leave it out"
        )
    if not runs:
        raise ValueError("a sweep needs at least one run: give fields as name=value,value or a sweep file")
    return runs


def read_tables(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fields that all runs of a sweep file share, and its grids, for `grid`.

    The file is TOML:

        dataset = "cifar10"
        epochs = 20

        [[runs]]
        method = ["dctps", "snip"]
        density = [0.05, 0.005]
        seed = [0, 1, 2]

        [[runs]]
        method = "dense"

    Raises:
        ValueError: no such file, or not of this form.
    """
    try:
        shared = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the sweep file {path} cannot be read: {error}") from None
    tables = shared.pop(_TABLES, [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"the sweep file {path}: write each grid under a heading of its own, [[{_TABLES}]]")
    return shared, tables


def parse_fields(assignments: Sequence[str]) -> dict[str, Any]:
    """Fields that are given as `name=value` or `name=value,value`, for `grid`."""
    table: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} sets no field: write name=value, or name=value,value")
        lookup("field", field_types(), name)
        values = [read_word(field_types()[name], word) for word in text.split(",")]
        table[name] = values if len(values) > 1 else values[0]
    return table


def _axis(name: str, value: Any) -> list[Any]:
    """The values that a field takes in turn."""
    lookup("field", field_types(), name)
    several = isinstance(value, list | tuple)
    if isinstance(getattr(RunConfig, name), tuple):  # a single value is itself a list
        several = several and len(value) > 0 and isinstance(value[0], list | tuple)
    return list(value) if several else [value]


def _folder_name(config: RunConfig) -> str:
    name = run_name(config)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    # Names given before there were the later fields stay.
    values = {
        field: value
        for field, value in to_dict(config).items()
        if field not in _LATER or value != getattr(RunConfig, field)
    }
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"{name[: _LONGEST_NAME - 17]}-{digest}"
