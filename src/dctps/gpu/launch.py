"""What the kernels are called with, and the calls."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tile = tuple[int, int]  # blocks and places within a block, powers of two

TILES: tuple[Tile, ...] = ((64, 16), (32, 32), (16, 64), (8, 128))  # of 1024 entries of a row
_BLOCK = 256  # nonzeros, or parts, of a program
_ROWS = 8  # of a program that sums
_ON_ROWS = ("apply_rows", "adjoint_rows", "sparse_rows", "sparse_gradient")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Entries:
    """D by the vectors of `offsets.Factors`, as kernels take it.

    Attributes:
        shape: of W.
        left: float32 (rows, coarse), with a last axis of 2 where it is complex; None: D = 0.
        right: float32 (rows', fine), likewise.
        left_index: int32 (m,) or None.
        right_index: int32 (m,) or None, as `left_index`.
        signs: int8 (blocks, n) or None.
        sign_index: int32 (m,) or None.
        channels_last: whether the vectors read n with the channel fastest.
    """

    shape: tuple[int, ...]
    left: Tensor | None = None
    right: Tensor | None = None
    left_index: Tensor | None = None
    right_index: Tensor | None = None
    signs: Tensor | None = None
    sign_index: Tensor | None = None
    channels_last: bool = True

    @property
    def tile(self) -> Tile:
        """What a program computes of a row."""
        assert self.right is not None
        fine = self.right.shape[1]
        return next((tile for tile in TILES if tile[1] >= fine), TILES[-1])

    @property
    def tiles(self) -> int:
        """How many of them make a row."""
        assert self.left is not None and self.right is not None
        down, across = self.tile
        return -(-self.left.shape[1] // down) * -(-self.right.shape[1] // across)

    def tensors(self, other: Tensor) -> dict[str, Tensor]:
        """The kernels' tables; `other` stands for those that are not read."""
        names = ("left", "right", "left_index", "right_index", "signs", "sign_index")
        found = {name: getattr(self, name) for name in names}
        return {name: other if table is None else table for name, table in found.items()}

    def sizes(self) -> dict[str, int]:
        """The kernels' numbers."""
        m, n = self.shape[0], math.prod(self.shape[1:])
        channels = self.shape[1]
        return {
            "n": n,
            "coarse": 1 if self.left is None else self.left.shape[1],
            "fine": 1 if self.right is None else self.right.shape[1],
            "run": 1 if self.signs is None else max(1, m // len(self.signs)),
            "channels": channels,
            "taps": n // channels,
        }

    def kinds(self, w: Tensor) -> dict[str, bool]:
        """What is fixed as a kernel is compiled, for W (or its gradient) as it lies in memory."""
        return {
            "COMPLEX": self.left is not None and self.left.dim() == 3,
            "INDEXED": self.left_index is not None,
            "SIGNED": self.signs is not None,
            "LOOKED_UP": self.sign_index is not None,
            "FACTORS_LAST": self.channels_last and math.prod(self.shape[2:]) > 1,
            "LAST": math.prod(self.shape[2:]) > 1 and not w.is_contiguous(),
        }


def make_weight(
    entries: Entries,
    alpha: Tensor | None,
    values: Tensor,
    support: Tensor,
    *,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """W = alpha * D + S in two launches: D, which is 0 without `alpha`, then the values.

    Args:
        entries: D.
        alpha: (1,) or None.
        values: (nnz,).
        support: int64 (nnz,), torch's flat positions.
        dtype: of W: float32, bfloat16 or float16.
        layout: of W: contiguous or channels last.
    """
    w = torch.empty(entries.shape, dtype=dtype, device=values.device, memory_format=layout)
    with device_of(w):
        if alpha is None or entries.left is None:
            w.zero_()
        else:
            launch("make_weight", *weight_arguments(w, entries, alpha))
        if len(values):
            launch("put_values", *value_arguments(w, entries, alpha, values, support))
    return w


def weight_gradients(
    grad_weight: Tensor,
    entries: Entries,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    *,
    need_values: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of values, where needed, and alpha, where given, from W's, in two launches.

    Args:
        grad_weight: of W's shape; float32, bfloat16 or float16.
        entries: D.
        values: (nnz,); gives the dtype of its gradient.
        support: int64 (nnz,), torch's flat positions.
        alpha: (1,); gives the dtype of its gradient. None: none is needed.
        need_values: whether the gradient of values is.
    """
    if not grad_weight.is_contiguous() and not (
        grad_weight.dim() == 4 and grad_weight.is_contiguous(memory_format=torch.channels_last)
    ):
        grad_weight = grad_weight.contiguous()
    grad_values = torch.empty_like(values) if need_values else None
    grad_alpha = parts = None
    if alpha is not None and entries.left is not None:
        grad_alpha = torch.empty_like(alpha)
        parts = values.new_empty(-(-entries.shape[0] // _ROWS) * entries.tiles, dtype=torch.float64)
    with device_of(grad_weight):
        if parts is not None or (grad_values is not None and len(values)):
            launch("gradients", *gradient_arguments(grad_weight, entries, grad_values, parts, support))
        if grad_alpha is not None and parts is not None:
            numbers = {"grad_alpha": grad_alpha, "parts": parts, "count": len(parts), "BLOCK": _BLOCK}
            launch("add_parts", (1,), numbers)
    return grad_values, grad_alpha


Arguments = tuple[tuple[int, ...], dict[str, Any]]  # the grid, and a kernel's arguments


def weight_arguments(w: Tensor, entries: Entries, alpha: Tensor) -> Arguments:
    """Those of `make_weight`."""
    down, across = entries.tile
    numbers = {**entries.tensors(w), **entries.sizes(), **entries.kinds(w), "BS": down, "BC": across}
    return (w.shape[0], entries.tiles), {"w": w, "alpha": alpha, **numbers}


def value_arguments(
    w: Tensor, entries: Entries, alpha: Tensor | None, values: Tensor, support: Tensor
) -> Arguments:
    """Those of `put_values`."""
    numbers = {**entries.tensors(w), "nnz": len(values), **entries.sizes(), **entries.kinds(w)}
    given = {"w": w, "alpha": w if alpha is None else alpha, "values": values, "support": support}
    offset = alpha is not None and entries.left is not None
    return (-(-len(values) // _BLOCK),), {**given, **numbers, "OFFSET": offset, "BLOCK": _BLOCK}


def gradient_arguments(
    grad_weight: Tensor, entries: Entries, grad_values: Tensor | None, parts: Tensor | None, support: Tensor
) -> Arguments:
    """Those of `gradients`."""
    summing = 0 if parts is None else len(parts)
    nnz = 0 if grad_values is None else len(grad_values)
    down, across = TILES[0] if parts is None else entries.tile
    given = {
        "grad_w": grad_weight,
        "grad_values": grad_weight if grad_values is None else grad_values,
        "parts": grad_weight if parts is None else parts,
        "support": support,
        **entries.tensors(grad_weight),
    }
    numbers = {"nnz": nnz, "summing": summing, "m": grad_weight.shape[0], **entries.sizes()}
    shape = {"BS": down, "BC": across, "ROWS": _ROWS, "BLOCK": _BLOCK}
    grid = (summing + -(-nnz // _BLOCK),)
    return grid, {**given, **numbers, **entries.kinds(grad_weight), **shape}


def launch(name: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Call a kernel."""
    home = "row_kernels" if name in _ON_ROWS else "kernels"
    kernel: Any = getattr(importlib.import_module(f"dctps.gpu.{home}"), name)
    kernel[grid](**{"num_warps": 4} | arguments)


def is_usable(x: Tensor) -> bool:
    """Whether the kernels take tensors of this device and dtype: CUDA, with Triton; or its interpreter."""
    return x.dtype in _DTYPES and (x.is_cuda or is_interpreted()) and _works(x.device)


def multiplies_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `rows` is worth while for tensors of a device and dtype.

    Before capability 9.0 products take their operands from registers, of which a long row needs too many; and
    in float32 tensor cores would round to TF32.
    """
    if is_interpreted():
        return dtype in _DTYPES
    if dtype not in (torch.bfloat16, torch.float16) or device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0) and _works(device)


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton's interpreter takes the place of its compiler."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a kernel runs there; Triton needs a C compiler on the machine, and a GPU that it knows."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        one = torch.ones(1, dtype=torch.float32, device=device)
        place = torch.zeros(1, dtype=torch.int64, device=device)
        like = {"dtype": torch.float32, "layout": torch.contiguous_format}
        return float(make_weight(Entries((1, 1)), None, one, place, **like)) == 1.0  # type: ignore[arg-type]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"Triton does not work on {device} ({type(error).__name__}: {reason}), so that torch makes the "
            "weights, in more launches. Triton needs a C compiler (gcc) and the headers of Python",
            stacklevel=2,
        )
        return False


def device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
