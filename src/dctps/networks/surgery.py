"""Walking a network by qualified names, and replacing modules in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dctps.networks.conversion import collapse, merged
from dctps.networks.fusion import unfuse_
from dctps.networks.replaced import trained, watch_optimizers
from dctps.nn.adapter import absorb, adapters_of
from dctps.nn.layer import DpSLayer
from dctps.nn.versions import absorb_version

_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, by its first qualified name without wrappers' prefixes.

    So names, and the draws that they key, do not depend on whether the network is compiled or wrapped
    for data parallel training.
    """
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for child_name, child in module.named_children():
            hidden = child_name in _WRAPPED or (child_name == "module" and isinstance(module, _WRAPPERS))
            parts = [name] if hidden else [name, child_name]
            yield from walk(".".join(filter(None, parts)), child)

    return walk("", model)


def replace_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each replacement wherever its original stands, shared places included.

    Returns:
        the model, or the root's own replacement.
    """
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[child_name] = replacements[child]
    return replacements.get(model, model)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse to replace layers below a wrapper that has listed their parameters.

    Raises:
        ValueError: there is one in the model.
    """
    for name, module in named_modules(model):
        if isinstance(module, DistributedDataParallel):
            raise ValueError(
                f"{name or 'the model'!r} is wrapped for DistributedDataParallel, which has listed the "
                f"parameters that it averages: convert (or merge) its .module, then wrap it again"
            )


class Mergeable(nn.Module):
    """A module other than a DpS layer that `merge_` replaces by `merged()`."""

    def merged(self) -> nn.Module:
        """The plain module that computes the same."""
        raise NotImplementedError


def merge_(model: nn.Module) -> nn.Module:
    """Turn every DpS layer back into the plain dense layer with the weight W = alpha * D + S.

    What was rewritten for the conversion is of its own class again (`nn.MultiheadAttention`, for one), and so
    are fused batch normalisations. A network on a hyperplane comes back as the plain one that it stands for.
    Of adapters the one in use is merged into the layers' weights, and all are gone.

    Args:
        model: any module, converted in part or whole; changed in place.

    Returns:
        the model; a root that is itself converted, or on a hyperplane, comes back replaced.

    Raises:
        ValueError: a model that is wrapped for `DistributedDataParallel`.
    """
    found = [m for m in model.modules() if isinstance(m, DpSLayer | Mergeable)]
    if found:
        refuse_wrapped(model)
    before = trained(model)
    for module in list(model.modules()):
        if adapters_of(module) is not None:
            absorb(module)
        absorb_version(module)
    left = {*model.modules()}
    found = [m for m in found if m in left]
    # A Mergeable merges a copy of what is in it, and stays as it is.
    inside = {inner for m in found if isinstance(m, Mergeable) for inner in m.modules() if inner is not m}
    plain: dict[nn.Module, nn.Module] = {
        m: m.merged() if isinstance(m, Mergeable) else merged(m) for m in found if m not in inside
    }
    model = replace_(model, plain)
    for module in reversed(list(model.modules())):  # what is inside first
        if (original := collapse(module)) is not module:
            model = replace_(model, {module: original})
    watch_optimizers(before, model, "merge_")
    return unfuse_(model)
