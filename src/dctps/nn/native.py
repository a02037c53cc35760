"""The product on rows and its first derivatives by the native kernel: for which offsets and tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from dctps.kernels import NativeOffset, has_plan, linear_backward, linear_forward, variant
from dctps.nn.weight import Weight
from dctps.offsets import DCTOffset, HadamardOffset, Offset, SDCTOffset, ZeroOffset

_CPU = torch.device("cpu")
_PLAIN = (Tensor, torch.nn.Parameter)


def has_native(offset: Offset) -> bool:
    """Whether the kernel knows D: its kind, one group, a length with small prime factors."""
    if variant() == "off" or offset.groups > 1 or math.prod(offset.shape[2:]) > 1:
        return False
    if type(offset) is DCTOffset:
        return has_plan(offset.size)
    if type(offset) is SDCTOffset:
        return has_plan(offset.in_features)
    return type(offset) in _FORMS


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors, none in float64, that no tracer or batching looks at."""
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in _PLAIN
            or not t.is_cpu
            or t.dtype == torch.float64
            or is_legacy_batchedtensor(t)  # autograd's own batching, of gradients
        ):
            return False
    return True


def is_traced(*tensors: Tensor) -> bool:
    """In a backward pass: whether a second derivative may follow, or the gradient is a batch of them."""
    return torch.is_grad_enabled() or not is_plain(*tensors)


def native_product(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """alpha * D x + S x + b on rows; half precision is computed in float32 and rounded once."""
    values, alpha, support, offset = weight
    y = linear_forward(
        single(x),
        single(values),
        support,
        single(alpha),
        single(bias),
        _form(offset),
        offset.out_features,
    )
    return y.to(x.dtype)


def native_backward(
    g: Tensor, x: Tensor, weight: Weight, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of `native_product` in x, values, alpha and bias, those that are needed."""
    values, alpha, support, offset = weight
    rows = single(g), single(x), single(values), support, single(alpha)
    found = linear_backward(*rows, _form(offset), needs)
    if x.dtype == values.dtype == torch.float32:
        return found
    by_x, by_values, by_alpha, by_bias = found  # the layer's parameters are of one dtype
    by_x, by_values = rounded(by_x, x), rounded(by_values, values)
    return by_x, by_values, rounded(by_alpha, values), rounded(by_bias, values)


@overload
def single(t: Tensor) -> Tensor: ...
@overload
def single(t: Tensor | None) -> Tensor | None: ...
def single(t: Tensor | None) -> Tensor | None:
    """T in float32, in which the kernels compute."""
    return t if t is None or t.dtype == torch.float32 else t.float()


@overload
def rounded(made: Tensor, like: Tensor) -> Tensor: ...
@overload
def rounded(made: Tensor | None, like: Tensor) -> Tensor | None: ...
def rounded(made: Tensor | None, like: Tensor) -> Tensor | None:
    """What the kernels made, in the dtype that was asked for."""
    return made if made is None or made.dtype == like.dtype else made.to(like.dtype)


def _form(offset: Offset) -> NativeOffset:
    return _FORMS[type(offset)](offset)


def _sdct(offset: Any) -> NativeOffset:
    positions, flips = offset._drawn(_CPU)
    return NativeOffset(
        "dct", offset.in_features, offset.rounds, positions, flips if offset.rounds > 1 else None
    )


def _hadamard(offset: Any) -> NativeOffset:
    return NativeOffset("hadamard", offset.size, 1, *offset._drawn(_CPU))


_FORMS: dict[type[Offset], Callable[[Any], NativeOffset]] = {
    ZeroOffset: lambda offset: NativeOffset("none"),
    DCTOffset: lambda offset: NativeOffset("dct", offset.size),
    SDCTOffset: _sdct,
    HadamardOffset: _hadamard,
}
