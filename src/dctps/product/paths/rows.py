"""The path `rows`: y = alpha * D x + S x + b by the native kernel, 16 rows at a time (`csrc/linear/`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dctps.kernels import NativeOffset, has_plan, linear_backward, linear_forward
from dctps.offsets import DCTOffset, HadamardOffset, Offset, SDCTOffset, ZeroOffset
from dctps.product.geometry import ROWS, ConvGeometry, Geometry, flat
from dctps.product.path import Call, Gradients, Needs, Path
from dctps.product.paths.transform import TRANSFORM
from dctps.product.precision import cast_like, to_float32, to_readable
from dctps.product.weight import Weight

_CPU = torch.device("cpu")
_TILE = 16  # rows that the kernel computes at once; a tile that is not full takes as long as a full one
_FEW = ((4, 8.0), (8, 10.0))  # a call of at most 4 rows costs as much as 8 rows of a full tile, and so on


class RowsPath(Path):
    """Tiles of rows: D by its fast transform, then the nonzeros of S, without a tensor in between."""

    name = "rows"
    adds_bias = True

    @property
    def twin(self) -> Path:
        """D by its transform in torch operations."""
        return TRANSFORM

    def refusal(self, call: Call) -> str:
        """Linear maps on rows, under an offset that the kernel knows."""
        known = call.native and call.geometry.is_rowwise(call.offset) and call.nnz < 2**31
        if known and has_native_transform(call.offset):
            return ""
        return (
            f"no native kernel for {call.offset!r} here: it takes dct, sdct, hadamard and zero offsets of "
            "one group, on CPU tensors below float64; is it compiled (`python -m dctps.kernels`)?"
        )

    def terms(self, call: Call) -> Mapping[str, float]:
        """A row's numbers into and out of tiles, D's transform, S's products, the index of S, and a call."""
        m, n = call.offset.out_features, call.offset.in_features
        passes, primes = butterflies(call.offset)
        rows, share = call.rows, 1 / call.threads
        tiled = next((cost for most, cost in _FEW if rows <= most), float(-(-rows // _TILE) * _TILE)) * share
        images = isinstance(call.geometry, ConvGeometry)
        copied = images and not (call.in_rows and call.geometry.stride == (1, 1))  # type: ignore[union-attr]
        return {
            "call": 1.0,
            "row": tiled,
            "move": tiled * (m + n),
            "transform": tiled * passes,
            "prime": tiled * primes,
            "nonzero": tiled * call.nnz,
            # S's index, which one or two tiles do without.
            "index" if rows > 2 * _TILE else "walk": float(call.nnz),
            "copy": rows * (m + n) * share if copied else 0.0,
        }

    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """In float32; half precision is rounded once."""
        values, alpha, support, offset = weight
        form = offset.memo("rows", lambda: native_offset(offset))
        if geometry is ROWS and x.dtype == values.dtype == torch.float32:  # no call more than there must be
            return linear_forward(x, values, support, alpha, bias, form, offset.shape[0])
        rows = to_readable(flat(geometry.to_rows(x)))
        y = linear_forward(rows, to_float32(values), support, to_float32(alpha), bias, form, offset.shape[0])
        return geometry.result(cast_like(y, x), x)

    def backward(
        self,
        g: Tensor,
        x: Tensor,
        weight: Weight,
        geometry: Geometry,
        saved: Tensor | None,
        needs: Needs,
    ) -> Gradients:
        """One native call for all gradients."""
        values, alpha, support, offset = weight
        form = offset.memo("rows", lambda: native_offset(offset))
        if geometry is ROWS and x.dtype == values.dtype == torch.float32:
            return linear_backward(g, x, values, support, alpha, form, needs)
        rows, grad_y = flat(geometry.to_rows(x)), flat(geometry.to_rows(g, strided=False))
        arguments = to_float32(values), support, to_float32(alpha), form, needs
        grad_x, grad_values, grad_alpha, grad_bias = linear_backward(
            to_readable(grad_y), to_readable(rows), *arguments
        )
        if grad_x is not None:
            grad_x = geometry.grad_input(cast_like(grad_x, x), x)
        return grad_x, cast_like(grad_values, values), cast_like(grad_alpha, values), grad_bias


def has_native_transform(offset: Offset) -> bool:
    """Whether the kernel knows D: its class, one group, a length with small prime factors."""
    if offset.groups > 1 or math.prod(offset.shape[2:]) > 1:
        return False
    if type(offset) is DCTOffset:
        return has_plan(offset.size)
    if type(offset) is SDCTOffset:
        return has_plan(offset.in_features)
    return type(offset) in _FORMS


def butterflies(offset: Offset) -> tuple[float, float]:
    """What D's transform of a row computes: sums of radices, for each element, up to 5 and of larger primes.

    Only the former have a routine of their own.
    """
    if isinstance(offset, ZeroOffset):
        return 0.0, 0.0
    length = offset.in_features if isinstance(offset, SDCTOffset) else getattr(offset, "size", 0)
    elements = length * (offset.rounds if isinstance(offset, SDCTOffset) else 1)
    rest, radix, sums = length, 2, [0, 0]
    while rest > 1:
        while rest % radix == 0:
            rest //= radix
            sums[radix > 5] += radix
        radix += 1
    return float(elements * sums[0]), float(elements * sums[1])


def native_offset(offset: Offset) -> NativeOffset:
    """D as the kernel knows it; it holds the offset's own draws and nothing else."""
    return _FORMS[type(offset)](offset)


def _sdct(offset: Any) -> NativeOffset:
    positions, flips = offset._drawn(_CPU)
    return NativeOffset(
        "dct", offset.in_features, offset.rounds, positions, flips if offset.rounds > 1 else None
    )


_FORMS: dict[type[Offset], Callable[[Any], NativeOffset]] = {
    ZeroOffset: lambda offset: NativeOffset("none"),
    DCTOffset: lambda offset: NativeOffset("dct", offset.size),
    SDCTOffset: _sdct,
    HadamardOffset: lambda offset: NativeOffset("hadamard", offset.size, 1, *offset._drawn(_CPU)),
}

ROWS_PATH = RowsPath()
