"""The paths that were measured for a run's layers, as a file: written once, read by who repeats it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dctps.kernels import variant
from dctps.networks import set_backends_
from dctps.networks.tuning import Measured
from dctps.product.rule import needs_native_code

_FORMAT = 1
BY_RULE = "rule"


def to_record(measured: Mapping[str, Measured], **place: Any) -> dict[str, Any]:
    """What the file holds: the choice and the times of each layer, and where they were measured."""
    return {"format": _FORMAT, **place, "layers": {name: asdict(m) for name, m in measured.items()}}


def read_backends(path: Path) -> dict[str, Any]:
    """The content of such a file.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        record = json.loads(path.read_text())
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']}, this version reads {_FORMAT}")
        for layer in record["layers"].values():
            str(layer["backend"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be used ({error}): give the backends.json that `dctps train --tune` wrote"
        ) from None
    return dict(record)


def apply_backends_(model: nn.Module, record: Mapping[str, Any] | None, place: torch.device) -> str:
    """Fix the layers' paths as recorded, where this place has them; else leave them to the rule.

    Returns:
        `"rule"`, or `"measured "` and a hash of the choices.

    Raises:
        ValueError: the record is of a network with other layers.
    """
    if record is None:
        return BY_RULE
    chosen = {name: layer["backend"] for name, layer in record["layers"].items()}
    native = any(needs_native_code(backend) for backend in chosen.values())
    if native and (place.type != "cpu" or variant() == "off"):
        return BY_RULE
    try:
        set_backends_(model, chosen)
    except ValueError as error:
        raise ValueError(f"the recorded backends are not of this network ({error})") from None
    return "measured " + hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
