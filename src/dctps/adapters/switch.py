"""Which adapter is in use: changed, merged, taken apart or removed in O(nnz)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dctps.adapters.targets import adapted, named_own
from dctps.nn import adapter as one
from dctps.nn.adapter import Adapters
from dctps.nn.versions import drop_version, use_version, versions_of


def set_adapter_(model: nn.Module, name: str | None) -> nn.Module:
    """Put one adapter in use, or with None the base alone; it is merged if the one before was.

    The modules that an adapter trains as a whole change with it, and so do the running statistics of norms.
    Only the adapter in use trains.

    Args:
        model: with adapters.
        name: of the adapter.

    Returns:
        the model.

    Raises:
        ValueError: there is no such adapter.
    """
    layers = adapted(model)
    if name is not None:
        _refuse_unknown(model, name)
    was_merged = any(adapters.merged is not None for _, adapters in layers.values())
    for layer, adapters in layers.values():
        one.unmerge(layer)
        adapters.active = name if name is not None and name in adapters else None
        for key, delta in adapters.items():
            values = delta.get_parameter("values")
            values.requires_grad_(key == name and values.numel() > 0)
    for _, module in named_own(model):
        if versions_of(module) is not None:
            use_version(module, name)
    return merge_adapter_(model) if was_merged and name is not None else model


def active_adapter(model: nn.Module) -> str | None:
    """The adapter in use; None for the base alone."""
    return next((a.active for _, a in adapted(model).values() if a.active is not None), None)


def list_adapters(model: nn.Module) -> list[str]:
    """The names of all adapters, in the order in which they came."""
    return list(dict.fromkeys(name for _, adapters in adapted(model).values() for name in adapters))


def merge_adapter_(model: nn.Module) -> nn.Module:
    """Write W_0 + S of the adapter in use into the layers' weights: O(nnz), and calls are plain again.

    The nnz numbers that stood there are kept, and `unmerge_adapter_` puts them back bit for bit.
    `dctps.merge_` merges for good, and leaves a plain network.

    Raises:
        ValueError: no adapter is in use.
    """
    if active_adapter(model) is None:
        raise ValueError("no adapter is in use: choose one with set_adapter_(model, name), then merge")
    for layer, _ in adapted(model).values():
        one.merge(layer)
    return model


def unmerge_adapter_(model: nn.Module) -> nn.Module:
    """Put W_0 back into the layers' weights, bit for bit; nothing where no adapter is merged."""
    for layer, _ in adapted(model).values():
        one.unmerge(layer)
    return model


@contextmanager
def disable(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which the network is the base; afterwards the same adapter is in use again."""
    name = active_adapter(model)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    was_merged = any(a.merged is not None for _, a in adapted(model).values())
    set_adapter_(model, None)
    try:
        yield model
    finally:
        set_adapter_(model, name)
        if was_merged:
            merge_adapter_(model)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def remove_adapter_(model: nn.Module, name: str = "default") -> nn.Module:
    """Take an adapter away; with the last one the layers are plain again, and frozen as the base was.

    Raises:
        ValueError: there is no such adapter.
    """
    _refuse_unknown(model, name)
    for layer, adapters in adapted(model).values():
        if name in adapters:
            one.detach(layer, name)
    for _, module in list(named_own(model)):
        if (versions := versions_of(module)) is not None and name in versions.trained:
            drop_version(module, name)
    return model


def layers_of(model: nn.Module, name: str | None) -> dict[str, tuple[nn.Module, Adapters]]:
    """The layers that have this adapter, by name; with None the one in use.

    Raises:
        ValueError: there is none.
    """
    name = name if name is not None else active_adapter(model)
    if name is None:
        raise ValueError("no adapter is in use: name one")
    _refuse_unknown(model, name)
    return {key: found for key, found in adapted(model).items() if name in found[1]}


def _refuse_unknown(model: nn.Module, name: str) -> None:
    if name not in (names := list_adapters(model)):
        raise ValueError(f"there is no adapter {name!r}: the network has {', '.join(names) or 'none'}")
