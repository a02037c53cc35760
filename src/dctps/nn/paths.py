"""The path of one product: what the rules are asked, and who is told of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dctps.kernels import variant
from dctps.nn.conv_dispatch import choose_conv_backend
from dctps.nn.dispatch import Backend, choose_backend, environment_backend
from dctps.nn.kept_weight import keeps_weight
from dctps.nn.maps import Conv2d, Linear
from dctps.nn.native import has_native, is_plain
from dctps.nn.native_conv import has_native_conv, has_native_weight
from dctps.nn.weight import Weight
from dctps.offsets import Offset

# Operations of torch; native code on rows, on strips, or for a W that is made twice, or once and kept.
Way = Literal["torch", "rows", "strips", "made", "kept"]

witnesses: list[Callable[[Call], None]] = []  # see every product whose path is chosen, before it is made


@dataclass(frozen=True)
class Call:
    """One product and the path chosen for it, for a witness.

    Attributes:
        x: as the product takes it: padded, in autocast's dtype, rows as a matrix.
        weight: the layer's.
        op: the product.
        backend: that the layer or the caller gave.
        plain: whether native code may see the tensors.
        path: that was chosen.
    """

    x: Tensor
    weight: Weight
    op: Linear | Conv2d
    backend: Backend
    plain: bool
    path: Backend


def choose_path(x: Tensor, weight: Weight, op: Linear | Conv2d, backend: Backend) -> tuple[Backend, Way]:
    """The path that `backend` names or the rule chooses, and which code takes it."""
    values, alpha, support, offset = weight
    asked = environment_backend() if backend == "auto" else backend
    plain = is_plain(x, values, alpha, support)
    nnz = values.numel()
    key = (x.shape, x.stride(), x.dtype, nnz, op, asked, plain, variant())
    path, way = offset.memo(key, lambda: _decide(x, nnz, offset, op, asked, plain))
    for see in witnesses:
        see(Call(x, weight, op, backend, plain, path))
    return path, way


def _decide(
    x: Tensor, nnz: int, offset: Offset, op: Linear | Conv2d, asked: Backend, plain: bool
) -> tuple[Backend, Way]:
    of_conv, told = question(x, nnz, offset, op, asked, plain)
    path = (choose_conv_backend if of_conv else choose_backend)(asked, offset, **told)
    if path == "dense" and plain and isinstance(op, Conv2d) and has_native_weight(offset):
        return path, "kept" if keeps_weight(x, nnz, offset, op) else "made"
    if path == "native":
        return path, "strips" if op.is_by_strips(x, offset) and has_native_conv(offset) else "rows"
    return path, "torch"


def question(
    x: Tensor, nnz: int, offset: Offset, op: Linear | Conv2d, asked: Backend, plain: bool
) -> tuple[bool, dict[str, Any]]:
    """Whether the rule of convolutions decides, not that of rows, and what it is told beside the offset."""
    if isinstance(op, Conv2d):
        rowwise = op.is_rowwise(offset)
        if not rowwise or (asked != "transform" and op.is_by_strips(x, offset)):
            native = plain and has_native_conv(offset)
            if native or not rowwise:
                read, written, positions = op.count_pixels(x, offset)
                sizes = {"read": read, "written": written, "positions": positions}
                return True, {**sizes, "nnz": nnz, "native": native}
    native = plain and has_native(offset) and nnz < 2**31
    made = plain and isinstance(op, Conv2d) and has_native_weight(offset)
    return False, {"rows": op.count_rows(x), "nnz": nnz, "native": native, "made": made}
