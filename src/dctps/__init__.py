"""Networks whose layers are `W = alpha * D + S`: a fast dense offset plus a sparse trained matrix.

Names load when first used, so that `import dctps` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dctps import moved as moved

if TYPE_CHECKING:
    from dctps.checkpoint import CheckpointError as CheckpointError
    from dctps.checkpoint import load_pretrained_ as load_pretrained_
    from dctps.checkpoint import save_pretrained as save_pretrained
    from dctps.dynamic import DSR as DSR
    from dctps.dynamic import SET as SET
    from dctps.dynamic import AveragedModel as AveragedModel
    from dctps.dynamic import RigL as RigL
    from dctps.nn import DpSConv1d as DpSConv1d
    from dctps.nn import DpSConv2d as DpSConv2d
    from dctps.nn import DpSLinear as DpSLinear
    from dctps.nn import DpSMultiheadAttention as DpSMultiheadAttention
    from dctps.nn import explain as explain
    from dctps.nn import merge_ as merge_
    from dctps.nn import plain_norms_ as plain_norms_
    from dctps.nn import register_conversion as register_conversion
    from dctps.nn import remove_biases_ as remove_biases_
    from dctps.nn import set_backends_ as set_backends_
    from dctps.nn import share_norms_ as share_norms_
    from dctps.nn import tune_ as tune_
    from dctps.offsets import Offset as Offset
    from dctps.offsets import build_offset as build_offset
    from dctps.offsets import register_offset as register_offset
    from dctps.reporting import report as report
    from dctps.selection import criteria as criteria
    from dctps.selection import register_allocation as register_allocation
    from dctps.selection import register_criterion as register_criterion
    from dctps.selection import shuffle_ as shuffle_
    from dctps.selection import sparsify_ as sparsify_
    from dctps.subspace import project_ as project_

__version__ = "0.1.0"

_HOMES = {
    "AveragedModel": "dynamic",
    "CheckpointError": "checkpoint",
    "DpSConv1d": "nn",
    "DSR": "dynamic",
    "DpSConv2d": "nn",
    "DpSLinear": "nn",
    "DpSMultiheadAttention": "nn",
    "Offset": "offsets",
    "RigL": "dynamic",
    "SET": "dynamic",
    "build_offset": "offsets",
    "criteria": "selection",
    "explain": "nn",
    "load_pretrained_": "checkpoint",
    "merge_": "nn",
    "plain_norms_": "nn",
    "project_": "subspace",
    "register_allocation": "selection",
    "register_conversion": "nn",
    "register_criterion": "selection",
    "register_offset": "offsets",
    "remove_biases_": "nn",
    "report": "reporting",
    "save_pretrained": "checkpoint",
    "set_backends_": "nn",
    "share_norms_": "nn",
    "shuffle_": "selection",
    "sparsify_": "selection",
    "tune_": "nn",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 (names that load when first used)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
