"""Networks whose layers are `W = alpha * D + S`: a fast dense offset plus a sparse trained matrix.

Names load when first used, so that `import dctps` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dctps import moved as moved

if TYPE_CHECKING:
    from dctps.adapters import adapt_ as adapt_
    from dctps.allocator import keep_freed_memory as keep_freed_memory
    from dctps.checkpoint import CheckpointError as CheckpointError
    from dctps.checkpoint import load_pretrained_ as load_pretrained_
    from dctps.checkpoint import save_pretrained as save_pretrained
    from dctps.dynamic import DSR as DSR
    from dctps.dynamic import SET as SET
    from dctps.dynamic import AveragedModel as AveragedModel
    from dctps.dynamic import RigL as RigL
    from dctps.dynamic import average_over_union as average_over_union
    from dctps.dynamic import register_dynamics as register_dynamics
    from dctps.experiments import register_method as register_method
    from dctps.experiments.trained import load_run as load_run
    from dctps.flat_state import load_trainable_state_ as load_trainable_state_
    from dctps.flat_state import trainable_state as trainable_state
    from dctps.networks import explain as explain
    from dctps.networks import freeze_except_norms_ as freeze_except_norms_
    from dctps.networks import fuse_ as fuse_
    from dctps.networks import merge_ as merge_
    from dctps.networks import plain_norms_ as plain_norms_
    from dctps.networks import register_conversion as register_conversion
    from dctps.networks import remove_biases_ as remove_biases_
    from dctps.networks import set_backends_ as set_backends_
    from dctps.networks import share_norms_ as share_norms_
    from dctps.networks import tune_ as tune_
    from dctps.networks import unfuse_ as unfuse_
    from dctps.networks import zero_head_ as zero_head_
    from dctps.nn import DpSConv1d as DpSConv1d
    from dctps.nn import DpSConv2d as DpSConv2d
    from dctps.nn import DpSLinear as DpSLinear
    from dctps.nn import DpSMultiheadAttention as DpSMultiheadAttention
    from dctps.offsets import Offset as Offset
    from dctps.offsets import build_offset as build_offset
    from dctps.offsets import register_offset as register_offset
    from dctps.plugins import load_plugins as load_plugins
    from dctps.reporting import report as report
    from dctps.selection import criteria as criteria
    from dctps.selection import register_allocation as register_allocation
    from dctps.selection import register_criterion as register_criterion
    from dctps.selection import shuffle_ as shuffle_
    from dctps.selection import sparsify_ as sparsify_
    from dctps.subspace import project_ as project_
    from dctps.training import parameter_groups as parameter_groups

__version__ = "0.1.0"

_HOMES = {
    name: home
    for home, names in {
        "adapters": "adapt_",
        "allocator": "keep_freed_memory",
        "checkpoint": "CheckpointError load_pretrained_ save_pretrained",
        "dynamic": "AveragedModel DSR SET RigL average_over_union register_dynamics",
        "experiments": "register_method",
        "experiments.trained": "load_run",
        "flat_state": "load_trainable_state_ trainable_state",
        "networks": "explain freeze_except_norms_ fuse_ merge_ plain_norms_ register_conversion "
        "remove_biases_ set_backends_ share_norms_ tune_ unfuse_ zero_head_",
        "nn": "DpSConv1d DpSConv2d DpSLinear DpSMultiheadAttention",
        "offsets": "Offset build_offset register_offset",
        "plugins": "load_plugins",
        "reporting": "report",
        "selection": "criteria register_allocation register_criterion shuffle_ sparsify_",
        "subspace": "project_",
        "training": "parameter_groups",
    }.items()
    for name in names.split()
}

# fmt: off
_FOLDERS = (
    "adapters", "analysis", "benchmarking", "checkpoint", "counter", "data", "dynamic", "experiments",
    "fused", "gpu", "identity", "initial", "kernels", "models", "networks", "nn", "offsets", "product",
    "reporting", "selection", "sparse", "stacks", "subspace", "sweeps", "testing", "training",
    "transforms",
)
# fmt: on

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 (names that load when first used)


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_FOLDERS})
