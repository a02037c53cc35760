"""Which tensors of a model a file holds by name: all but D, S and alpha."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from dctps.checkpoint.container import shorten
from dctps.checkpoint.manifest import Norms
from dctps.identity.identified import Identified
from dctps.networks.norms import NORM_LAYERS
from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer
from dctps.nn.adapter import Adapters
from dctps.subspace import Hyperplane

STATISTICS = ("weight", "bias", "running_mean", "running_var")

_PACKED = ("values", "support", "alpha")


@dataclass
class Slot:
    """A parameter or persistent buffer, and its owners (module, attribute): several where it is shared."""

    tensor: Tensor
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """The tensors that a file of this model holds beside S and alpha.

    `slots` are stored as they are, by name in the file; of `folded` batch norms only scale and shift are.
    `dropped` are counters of batch norms, which inference does not need; `projections` are specs, by module.
    """

    slots: dict[str, Slot]
    folded: dict[str, _NormBase]
    dropped: list[Slot]
    layers: dict[str, DpSLayer]
    projections: dict[str, dict[str, Any]]


def state_of(model: nn.Module, norms: Norms = "full", skip: Collection[Tensor] = ()) -> State:
    """What a file with such `norms` holds of `model`, a shared tensor once, those in `skip` never.

    State that is no tensor, or two tensors of one name, are a ValueError.
    """
    found: dict[int, tuple[str, Slot]] = {}
    layers, skipped = {}, set(map(id, skip))
    for name, module in named_modules(model):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            what = f"module {name!r} ({type(module).__name__})"
            raise ValueError(f"{what} has extra state, which a checkpoint cannot hold")
        if isinstance(module, DpSLayer):
            layers[name] = module
        if isinstance(module, Adapters):
            module.refuse_merged("a file would hold W_0 + S as if it were W_0")
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            packed = isinstance(module, DpSLayer) and key in _PACKED
            # Which offset or projection it is, a file has in its own words.
            packed |= isinstance(module, Identified) and key == "identity"
            if tensor is None or packed or key in module._non_persistent_buffers_set or id(tensor) in skipped:
                continue
            if is_lazy(tensor):
                raise ValueError(f"module {name!r} is lazy: call the model once, so that it has its shapes")
            path = ".".join(filter(None, (name, key)))
            found.setdefault(id(tensor), (path, Slot(tensor)))[1].owners.append((module, key))
    if len({path for path, _ in found.values()}) < len(found):
        raise ValueError(f"two tensors of this {type(model).__name__} have one name: rename a module")
    slots = dict(found.values())
    projections = {n: m.projection.spec for n, m in named_modules(model) if isinstance(m, Hyperplane)}
    if projections and norms.startswith("folded"):
        raise ValueError(f"norms={norms!r} does not fold norms on a hyperplane: make it plain with merge_")

    batch_norms = {n: m for n, m in named_modules(model) if isinstance(m, _NormBase) and norms != "full"}
    folded: dict[str, _NormBase] = {}
    dropped: list[Slot] = []
    for name, norm in batch_norms.items():
        dropped += _take(slots, norm, ("num_batches_tracked",))
        owners = [slot.owners for slot in slots.values()]
        if norms.startswith("folded") and all([(norm, key)] in owners for key in STATISTICS):
            _take(slots, norm, STATISTICS)
            folded[name] = norm
    # A tensor at the model's root may be called as one of the three packed ones: it gets a slash.
    slots = {f"/{path}" if path.lstrip("/") in _PACKED else path: slot for path, slot in slots.items()}
    return State(slots, folded, dropped, layers, projections)


def folded_names(name: str) -> tuple[str, str]:
    """The names in a file of a folded norm's scale and shift."""
    return ".".join(filter(None, (name, "scale"))), ".".join(filter(None, (name, "shift")))


def is_norm(slot: Slot) -> bool:
    """Whether this is a floating-point number of a normalisation layer."""
    of_norms = all(isinstance(module, NORM_LAYERS) for module, _ in slot.owners)
    return of_norms and slot.tensor.is_floating_point()


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; ValueError where a number is finite and would not be so in that."""
    cast = tensor.to(dtype)
    if dtype != tensor.dtype and not torch.equal(cast.isfinite(), tensor.isfinite()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise ValueError(f"{shorten(name)} holds {largest:.4g}, which {dtype} cannot: keep it wider")
    return cast


def _take(slots: dict[str, Slot], module: nn.Module, keys: Collection[str]) -> list[Slot]:
    paths = [p for p, slot in slots.items() if slot.owners[0][0] is module and slot.owners[0][1] in keys]
    return [slots.pop(path) for path in paths]
