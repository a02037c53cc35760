"""Tables that depend on a size alone: made when first used, shared by all layers, never saved."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MAX_TABLES = 256  # of each kind; a table is a few times a layer's width, so this bounds them to some MB
_caches: list[dict[Any, Tensor]] = []


def shape_table(make: Callable[[int, torch.dtype, torch.device], Tensor]) -> Callable[..., Tensor]:
    """Cache `make(size, dtype, device)`, the least recently used tables making room for new ones.

    The table is made outside inference mode: autograd could not save it for backward otherwise.
    """
    cache: dict[Any, Tensor] = {}
    _caches.append(cache)

    @functools.wraps(make)
    def cached(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (size, dtype, device)
        table = cache.pop(key, None)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():
                table = make(size, dtype, device)
            while len(cache) >= _MAX_TABLES:
                cache.pop(next(iter(cache)), None)
        cache[key] = table
        return table

    return cached


def table_bytes() -> int:
    """Bytes that all shape tables of this process hold now."""
    return sum(t.numel() * t.element_size() for cache in _caches for t in list(cache.values()))


def clear_tables() -> None:
    """Drop every shape table; the next use makes it again."""
    for cache in _caches:
        cache.clear()
