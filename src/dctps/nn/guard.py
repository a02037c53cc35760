"""What a layer refuses, each with the way that works: writing into its weight, and tools that replace values.

W = alpha * D + S exists only while someone looks at it. A tool of torch that writes into `layer.weight`, or
takes it out and puts another in its place, would change nothing, so it gets an error that says what to do.
"""

from __future__ import annotations

import copy
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dctps.transforms.tables import is_exporting

_REPLACING = ("torch.nn.utils.parametrize", "torch.nn.utils.spectral_norm")
_REPLACED = {"weight"} | {f"{name}_{part}" for name in ("weight", "values") for part in ("orig", "g", "v")}
_ASSIGNMENTS = {
    f"__i{operator}__"
    for operator in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor")
} | {"__setitem__"}
_NO_WRITES = {"requires_grad_", "share_memory_"}


class QuietTrace(nn.Module):
    """A module whose sizes may become constants in a trace, as they are its own, those of its inputs not."""

    def _slow_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """What torch calls instead of `forward` while `torch.jit.trace` is at work, which warns of sizes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            return super()._slow_forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]


class GuardedLayer(QuietTrace):
    """A module whose `weight` is computed from `values`, and must not be replaced by a parameter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # torch's tools look here for what they are to take out, and find that there is no such parameter.
        self._parameters["weight"] = None

    @abstractmethod
    def to_dense(self) -> Tensor:
        """W, made when asked."""

    @property
    def weight(self) -> Tensor:
        """`to_dense()` to read, at O(out * in) time and memory for each access; a write is an error."""
        return _read_only(self.to_dense(), self._label)

    @property
    def _label(self) -> str:
        """The class, and the qualified name where there is one, for messages."""
        name = getattr(getattr(self, "last_map", None), "layer", "")
        return f"{type(self).__name__} {name!r}" if name else type(self).__name__

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise RuntimeError(_cannot_write(self._label))
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As every module's.

        Raises:
            RuntimeError: one that a tool puts in the place of weight or values.
        """
        if name in _REPLACED:
            raise RuntimeError(_cannot_replace(self._label))
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        caller = sys._getframe(1).f_globals.get("__name__")
        if name in ("values", "support", "weight") and caller in _REPLACING:
            raise RuntimeError(_cannot_replace(self._label))
        super().__delattr__(name)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot read {self._label}, which chooses its code in Python: use "
            f"torch.jit.trace(model, example), torch.export.export, or script a dense copy, "
            f"torch.jit.script(dctps.merge_(copy.deepcopy(model)))"
        )


class ReadOnlyWeight(Tensor):
    """W as `layer.weight` gives it: every operation reads it, and one that would write into it is an error.

    Results are plain tensors, except views of W and its `.data`, which are read-only too. A parameter made
    of it, a copy and a file hold a plain tensor.
    """

    _layer: str

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for written in _written(func, args, kwargs):
            if isinstance(written, cls):
                raise RuntimeError(_cannot_write(written._layer))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            is_of_w = bool(args) and isinstance(args[0], cls) and _attribute(func) != "_base"
            return _guard_views(result, args[0]) if is_of_w else result

    @property
    def _is_param(self) -> bool:
        """Set by `nn.Parameter(weight)`, which is then as plain as one of any other tensor."""
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        vars(self).clear()
        self.__class__ = nn.Parameter  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return copy.deepcopy(_plain(self), memo)


def _read_only(weight: Tensor, label: str) -> Tensor:
    """W, unguarded where a compiler, an exporter or a transform looks at it: there nothing is written."""
    is_seen = (
        type(weight) is not Tensor
        or is_exporting()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    )
    return weight if is_seen else _as_read_only(weight, label)


def _as_read_only(weight: Tensor, label: str) -> Tensor:
    guarded = weight.as_subclass(ReadOnlyWeight)
    guarded._layer = label
    return guarded


def _plain(weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return weight.as_subclass(Tensor)


def _guard_views(result: Any, source: ReadOnlyWeight) -> Any:
    if type(result) in (list, tuple):
        return type(result)(_guard_views(part, source) for part in result)
    if type(result) is Tensor and torch._C._is_alias_of(result, source):  # type: ignore[attr-defined]
        return _as_read_only(result, source._layer)
    return result


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The tensors that a call writes into."""
    name = getattr(func, "__name__", "")
    in_place = name in _ASSIGNMENTS or (name.endswith("_") and name[-2:] != "__" and name not in _NO_WRITES)
    in_place = in_place or (name == "__set__" and _attribute(func) == "data")
    first = args[0] if args else next(iter(kwargs.values()), None)
    found = [first, kwargs.get("out")] if in_place or kwargs.get("inplace") else [kwargs.get("out")]
    return [t for part in found for t in (part if isinstance(part, list | tuple) else [part])]


def _attribute(func: Callable[..., Any]) -> str:
    """The attribute of a tensor that `func` gets or sets; empty for a function of another kind."""
    return getattr(getattr(func, "__self__", None), "__name__", "")


def _cannot_write(label: str) -> str:
    return (
        f"{label} computes its weight, alpha * D + S, at each access, so what is written into it is lost: "
        f"write into .values (S at .support), .alpha and .bias instead; .to_dense() gives a tensor of your "
        f"own, and dctps.merge_(model) makes plain layers whose weights can be written"
    )


def _cannot_replace(label: str) -> str:
    return (
        f"{label} cannot have weight, values or support parametrised, pruned or normalised: they belong "
        f"together in its state, its files and its gradients. Leave the layer dense by filter_fn, or make it "
        f"dense by dctps.merge_(model). To prune, convert a dense network by dctps.sparsify_(model, density, "
        f"offset='zero', criterion='magnitude')"
    )
