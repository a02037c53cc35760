"""Which classes become DpS layers, and how a class of another kind is written in those that do.

Three plain layers have a DpS one. Any other class with weight matrices takes part by an `expand` function,
which writes a module in plain layers; those are then converted, counted and stored like any others. To add
one, decorate it with `register_conversion(TheClass)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from dctps.names import Registry
from dctps.nn.conv import DpSConv2d
from dctps.nn.conv1d import DpSConv1d
from dctps.nn.layer import _HOOKS, DpSLayer
from dctps.nn.linear import DpSLinear

Rewrite = Callable[[nn.Module], nn.Module]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

DPS_CLASS: dict[type[nn.Module], type[DpSLayer]] = {
    nn.Linear: DpSLinear,
    nn.Conv1d: DpSConv1d,
    nn.Conv2d: DpSConv2d,
}

# Where an expansion says which class it is to be collapsed into.
_ORIGIN = "expanded_from"


@dataclass(frozen=True)
class Conversion:
    """One class that is written in plain layers.

    Attributes:
        expand: from a module of the class to one made of plain layers, with the same outputs; it may share
            tensors with the original, and must not change it. ValueError: this one cannot be; its text
            says why.
        collapse: back, once the layers are plain again; None: the expansion stays in its place.
    """

    expand: Rewrite
    collapse: Rewrite | None


CONVERSIONS: Registry[Conversion] = Registry("conversion")


def register_conversion(
    dense: type[nn.Module] | str, *, collapse: Rewrite | None = None
) -> Callable[[Rewrite], Rewrite]:
    """Decorator for the function that writes a module of the class `dense` in plain layers.

    It returns an `nn.Linear`, `nn.Conv1d` or `nn.Conv2d`, or a module that holds some; they may share tensors
    with the original. A ValueError leaves that one module alone, with its text as the reason.

    Args:
        dense: the class, exactly (not its subclasses), or its full dotted name, which imports nothing.
        collapse: the way back, for `merge_`: from the module that the function returned, plain again, to one
            of the class. None: that module stays.

    Raises:
        ValueError: the class has another conversion already.
    """
    name = dense if isinstance(dense, str) else class_path(dense)
    if name in map(class_path, DPS_CLASS):
        raise ValueError(f"{name} has a DpS layer already: register a class of your own")

    return CONVERSIONS.register(name, lambda expand: Conversion(expand, collapse))


def class_path(kind: type) -> str:
    """The full dotted name, by which conversions are registered."""
    return f"{kind.__module__}.{kind.__qualname__}"


def find_conversion(kind: type) -> Conversion | None:
    """That of a class, exactly, if there is one."""
    return CONVERSIONS.get(class_path(kind))


def expand(module: nn.Module) -> nn.Module:
    """The module in plain layers, with its hooks and its training mode.

    Raises:
        ValueError: this one cannot be; the text says why.
    """
    conversion = find_conversion(type(module))
    assert conversion is not None
    expansion = conversion.expand(module)
    setattr(expansion, _ORIGIN, class_path(type(module)))
    return _take_over(expansion, module)


def collapse(expansion: nn.Module) -> nn.Module:
    """The module of its original class; the expansion itself where there is no way back."""
    conversion = CONVERSIONS.get(getattr(expansion, _ORIGIN, ""))
    if conversion is None or conversion.collapse is None:
        return expansion
    return _take_over(conversion.collapse(expansion), expansion)


def convert(layer: nn.Module, **options: Any) -> DpSLayer:
    """`from_dense` of the class that a plain layer becomes.

    Args:
        layer: of a class in `DPS_CLASS`.
        options: of `from_dense`.
    """
    converted = DPS_CLASS[type(layer)].from_dense(layer, **options)  # type: ignore[arg-type]
    return _keep_origin(converted, layer)


def merged(layer: DpSLayer) -> nn.Module:
    """The plain layer with the weight `to_dense()`."""
    return _keep_origin(layer.merged(), layer)


def _keep_origin(new: ModuleT, old: nn.Module) -> ModuleT:
    if hasattr(old, _ORIGIN):
        setattr(new, _ORIGIN, getattr(old, _ORIGIN))
    return new


def _take_over(new: nn.Module, old: nn.Module) -> nn.Module:
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    for module in set(new.modules()) - set(old.modules()):
        module.training = old.training
    return new
