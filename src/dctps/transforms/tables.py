"""Tables that depend on a size alone: made when first used, shared by all layers, never saved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
R = TypeVar("R")

_MAX_TABLES = 256  # of each kind; a table is a few times a layer's width, so this bounds them to some MB
_KNOWS_EXPORTS = hasattr(torch.compiler, "is_exporting")
_caches: list[dict[Any, Tensor]] = []


def shape_table(make: Callable[[Any, torch.dtype, torch.device], Tensor]) -> Callable[..., Tensor]:
    """Cache `make(size, dtype, device)`, where a size is a number or several.

    The least recently used tables make room for new ones.

    To a compiler the table is a constant.
    """
    cache: dict[Any, Tensor] = {}
    _caches.append(cache)

    @constant_to_compilers
    @functools.wraps(make)
    def cached(size: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (size, dtype, device)
        table = cache.pop(key, None)
        if table is None:
            with making_constants():
                table = make(size, dtype, device)
            while len(cache) >= _MAX_TABLES:
                cache.pop(next(iter(cache)), None)
        cache[key] = table
        return as_seen(table)

    return cached


def constant_to_compilers(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that compilers call while they trace, its result a constant to them.

    As `torch.compiler.assume_constant_result` does, which would import the compiler: 2 s for everyone.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@contextlib.contextmanager
def making_constants() -> Iterator[None]:
    """Tensors made here are real ones, and what they are depends on nothing that was set for the caller.

    They outlive the call that makes them: an exporter's stand-ins, the wrappers of `torch.func`, tensors of
    inference mode, which autograd cannot save, or of a default device would be of no use to the next one. No
    exporter sees what happens here, the change of the gradient mode included: a program that held this change
    could not be loaded.
    """
    exporting = is_exporting()
    with contextlib.ExitStack() as outside:
        if exporting:
            set_trace: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
            outside.callback(set_trace, torch._C._get_tracing_state())
            set_trace(None)
        if torch._C._len_torch_dispatch_stack() or exporting:
            outside.enter_context(_disable_current_modes())
        if torch._C._are_functorch_transforms_active():
            outside.enter_context(temporarily_clear_interpreter_stack())
        outside.enter_context(torch._C.DisableTorchFunction())  # `with torch.device(...)` and the like
        outside.enter_context(torch.inference_mode(False))
        outside.enter_context(torch.no_grad())
        yield


def as_seen(table: Tensor) -> Tensor:
    """A real table as the mode at work takes it: a stand-in where all tensors have to be."""
    if torch._C._len_torch_dispatch_stack():
        fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        if fake is not None and not fake.allow_non_fake_inputs:
            return fake.from_tensor(table)  # type: ignore[no-any-return]
    return table


def is_exporting() -> bool:
    """Whether `torch.export` or `torch.jit.trace` is at work, ONNX exporters included.

    Torch 2.6 has no way to ask for `torch.export`, which there exports the library's operators.
    """
    return (_KNOWS_EXPORTS and torch.compiler.is_exporting()) or is_tracing()


def is_tracing() -> bool:
    """Whether `torch.jit.trace` is at work, which the older ONNX exporter begins with."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def exporting_to_onnx() -> bool:
    """Whether an ONNX program is being made; free of cost where nothing is exported."""
    return is_exporting() and torch.onnx.is_in_onnx_export()


def table_bytes() -> int:
    """Bytes that all shape tables of this process hold now."""
    return sum(t.numel() * t.element_size() for cache in _caches for t in list(cache.values()))


def clear_tables() -> None:
    """Drop every shape table; the next use makes it again."""
    for cache in _caches:
        cache.clear()
