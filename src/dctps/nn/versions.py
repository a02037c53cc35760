"""Several versions of one module's own tensors: the base's, and one for each adapter that trains the module.

The version in use is in the module itself, so that optimizers, hooks and tied places see the same parameters
all the time. The others wait in the module's child `versions`, as buffers.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

CHILD = "versions"
BASE = ""  # the name of the version that was there before any adapter


class Versions(nn.Module):
    """The versions of a module's own tensors that are not in use, as buffers `<adapter>/<tensor>`.

    Attributes:
        keys: the module's tensors that have versions, by attribute.
        current: name of the one in use.
        trained: by adapter, whether its version trains; the base's does not.
    """

    def __init__(self, keys: Collection[str]) -> None:
        super().__init__()
        self.keys = tuple(keys)
        self.current = BASE
        self.trained: dict[str, bool] = {}


def versions_of(module: nn.Module) -> Versions | None:
    """The module's versions, if it has some."""
    found = module._modules.get(CHILD)
    return found if isinstance(found, Versions) else None


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and persistent buffers, by attribute; not those of modules in it."""
    buffers = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
    return {key: t for key, t in {**module._parameters, **buffers}.items() if t is not None}


@torch.no_grad()
def keep_version(module: nn.Module, keys: Collection[str], adapter: str, trains: bool) -> None:
    """Give the adapter its own version of these tensors, which begins as the base's and is not in use yet."""
    versions = versions_of(module)
    if versions is None:
        versions = Versions(keys)
        module.add_module(CHILD, versions)
    versions.trained[adapter] = trains
    for key, tensor in version(module, BASE).items():
        versions.register_buffer(f"{adapter}/{key}", tensor.clone())


def version(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of one version, themselves."""
    versions = versions_of(module)
    assert versions is not None
    if name == versions.current:
        own = own_tensors(module)
        return {key: own[key].detach() for key in versions.keys}
    return {key: versions.get_buffer(f"{name}/{key}") for key in versions.keys}


@torch.no_grad()
def use_version(module: nn.Module, adapter: str | None, trainable: bool = True) -> None:
    """Put the adapter's version in use, or the base's where it has none, and let it train if it is to."""
    versions = versions_of(module)
    assert versions is not None
    name = adapter if adapter in versions.trained else BASE
    own = own_tensors(module)
    if name != versions.current:
        for key, tensor in version(module, name).items():
            versions.register_buffer(f"{versions.current}/{key}", own[key].detach().clone())
            own[key].copy_(tensor)
            del versions._buffers[f"{name}/{key}"]
        versions.current = name
    for key in versions.keys:
        if own[key].is_floating_point() and key in module._parameters:
            own[key].requires_grad_(trainable and versions.trained.get(name, False))


def absorb_version(module: nn.Module) -> None:
    """Leave the version in use in the module for good, and forget the others."""
    if versions_of(module) is not None:
        del module._modules[CHILD]


def drop_version(module: nn.Module, adapter: str) -> None:
    """Forget an adapter's version; with the last one the child goes, and the base's is in use."""
    versions = versions_of(module)
    assert versions is not None
    if versions.current == adapter:
        use_version(module, None)
    for key in versions.keys:
        del versions._buffers[f"{adapter}/{key}"]
    del versions.trained[adapter]
    if not versions.trained:
        del module._modules[CHILD]
