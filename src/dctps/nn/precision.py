"""In which dtype a product is made: autocast's for its tensors, float32 or float64 inside."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """FFTs and sparse products have no half-precision kernels; W too is made in float32, then rounded."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast(x: Tensor) -> Tensor:
    """X in the dtype that autocast would give `F.linear`'s input."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from rounding the products inside, which choose their own precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
