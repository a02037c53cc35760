"""The paths that were measured for a run's layers, in a file: written once, read to repeat the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dctps.experiments.folder import BACKENDS
from dctps.experiments.records import Record, RunFolderError
from dctps.experiments.session import Session
from dctps.kernels import variant
from dctps.networks import set_backends_
from dctps.product.rule import needs_native_code

_FORMAT = 1


def read_backends(path: Path) -> Record:
    """The content of such a file; a `RunFolderError` where it cannot be read or holds something else."""
    try:
        record = json.loads(path.read_text())
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']}, this version reads {_FORMAT}")
        for layer in record["layers"].values():
            str(layer["backend"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{path} cannot be used ({error}): give the backends.json that `dctps train --tune` wrote"
        ) from None
    return dict(record)


def backends_of_run(path: Path) -> Record | None:
    """The recorded paths of the run in the folder `path`; None where none were measured."""
    return read_backends(path / BACKENDS) if (path / BACKENDS).exists() else None


def choose_backends(path: Path, given: Record | None, tune: bool, session: Session) -> Record | None:
    """The paths of the layers of the run in the folder `path`: those recorded there, given, or measured now.

    None leaves them to the rule. A folder with other paths than those given is a `RunFolderError`.
    """
    recorded = backends_of_run(path)
    if recorded is None and tune:
        layers = {name: asdict(measured) for name, measured in session.tune().items()}
        machine = {"device": str(session.device), "threads": torch.get_num_threads()}
        return {"format": _FORMAT, "kernels": variant(), **machine, "layers": layers}
    if recorded is not None and given is not None and recorded["layers"] != given["layers"]:
        raise RunFolderError(
            f"{path} has other backends (its {BACKENDS}) than those given: leave --backends out, or "
            f"choose another --out"
        )
    return given if recorded is None else recorded


def apply_backends_(model: nn.Module, record: Mapping[str, Any] | None, device: torch.device) -> str:
    """Fix the layers' paths as recorded, where this machine has them; else leave them to the rule.

    Gives `"rule"`, or `"measured "` and a hash of the choices; a ValueError where the layers are others.
    """
    chosen = {name: layer["backend"] for name, layer in record["layers"].items()} if record else {}
    native = any(needs_native_code(backend) for backend in chosen.values())
    if record is None or (native and (device.type != "cpu" or variant() == "off")):
        return "rule"
    try:
        set_backends_(model, chosen)
    except ValueError as error:
        raise ValueError(f"the recorded backends are not of this network ({error})") from None
    return "measured " + hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
