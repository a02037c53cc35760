"""In which dtype a product is made: autocast's for its tensors, float32 or float64 inside."""

from __future__ import annotations

import contextlib
from typing import Any, overload

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """FFTs and sparse products have no half-precision kernels; W too is made in float32, then rounded."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast would give `F.linear`'s input."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from rounding the products inside, which choose their own precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


@overload
def to_float32(t: Tensor) -> Tensor: ...
@overload
def to_float32(t: Tensor | None) -> Tensor | None: ...
def to_float32(t: Tensor | None) -> Tensor | None:
    """t in float32, in which native kernels compute."""
    return t if t is None or t.dtype == torch.float32 else t.float()


def to_readable(x: Tensor) -> Tensor:
    """Rows or images in a dtype that native kernels read and write: bfloat16 or float32."""
    return x if x.dtype == torch.bfloat16 else to_float32(x)


@overload
def cast_like(made: Tensor, like: Tensor) -> Tensor: ...
@overload
def cast_like(made: Tensor | None, like: Tensor) -> Tensor | None: ...
def cast_like(made: Tensor | None, like: Tensor) -> Tensor | None:
    """What a kernel made, rounded to the dtype of another tensor."""
    return made if made is None or made.dtype == like.dtype else made.to(like.dtype)


def allows_tf32() -> bool:
    """Whether torch may round float32 to TF32 in a GPU's matrix products, by either of its settings."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)
