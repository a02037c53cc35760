"""The native kernel of linear layers: y = alpha D x + S x + b on rows, and its derivatives."""

from __future__ import annotations

from array import array
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dctps.kernels.build import LANES
from dctps.kernels.loader import function, variant
from dctps.kernels.plans import dct_indices, dct_twiddles

_CPU = torch.device("cpu")
_KINDS = {"none": 0, "dct": 1, "hadamard": 2}
_SERIAL = 1 << 17  # numbers below which one thread does it all


class NativeOffset(NamedTuple):
    """D as the kernel knows it: outputs pick among the frequencies of `rounds` transforms of the inputs.

    Attributes:
        kind: of transform.
        size: q, its length, at least the inputs'; power of two for `hadamard`.
        rounds: how many transforms, each of the inputs under its own signs.
        order: int32 (m): output -> round * q + frequency; None: the first m.
        signs: int8 (rounds, n) or (rounds, n + 1), where the last is common to a round; None: all 1.
    """

    kind: Literal["none", "dct", "hadamard"]
    size: int = 0
    rounds: int = 1
    order: Tensor | None = None
    signs: Tensor | None = None


def linear_forward(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    bias: Tensor | None,
    offset: NativeOffset,
    m: int,
) -> Tensor:
    """Y = x (alpha D + S)^T + b.

    Args:
        x: float32 (batch, n).
        values: float32 (nnz,).
        support: int64 (nnz,), sorted flat positions in S.
        alpha: float32 (1,), or None where there is no D.
        bias: float32 (m,) or None.
        offset: D.
        m: outputs.

    Returns:
        float32 (batch, m).
    """
    x = _rows(x)
    y = torch.empty(x.shape[0], m)
    if y.numel():
        _call("linear_forward", x, values, support, alpha, offset, m, y=y, bias=bias)
    return y


def linear_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    offset: NativeOffset,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives in x, values, alpha and bias, those that are needed.

    Args:
        g: float32 (batch, m).
        x: float32 (batch, n).
        values: float32 (nnz,).
        support: int64 (nnz,), sorted flat positions in S.
        alpha: float32 (1,), or None where there is no D.
        offset: D.
        needs: which.
    """
    g, x = _rows(g), _rows(x)
    m = g.shape[1]
    dx = torch.empty(x.shape) if needs[0] else None
    dvalues = torch.empty(values.shape) if needs[1] else None
    dalpha = torch.empty(1) if needs[2] and alpha is not None else None
    dbias = torch.empty(m) if needs[3] else None
    if x.shape[0]:
        _call(
            "linear_backward",
            x,
            values,
            support,
            alpha,
            offset,
            m,
            g=g,
            dx=dx,
            dvalues=dvalues,
            dalpha=dalpha,
            dbias=dbias,
        )
    else:
        for by in (dvalues, dalpha, dbias):
            if by is not None:
                by.zero_()
    return dx, dvalues, dalpha, dbias


def _call(
    name: str,
    x: Tensor,
    values: Tensor,
    support: Tensor,
    alpha: Tensor | None,
    offset: NativeOffset,
    m: int,
    *,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    g: Tensor | None = None,
    dx: Tensor | None = None,
    dvalues: Tensor | None = None,
    dalpha: Tensor | None = None,
    dbias: Tensor | None = None,
) -> None:
    """The arguments in the order of csrc/linear.h, and the call, during which all tensors are alive."""
    batch, n = x.shape
    plan = tables = None
    kind = offset.kind if alpha is not None else "none"
    if kind == "dct":
        plan = dct_indices(offset.size, torch.int32, _CPU)
        tables = dct_twiddles(offset.size, torch.float32, _CPU)
    signs = offset.signs
    values, support = values.contiguous(), support.contiguous()
    packed = array(
        "q",
        (
            batch,
            m,
            n,
            values.shape[0],
            torch.get_num_threads() if batch * (n + m) + values.shape[0] > _SERIAL else 1,
            x.data_ptr(),
            x.stride(0),
            _address(y),
            _address(bias),
            values.data_ptr(),
            support.data_ptr(),
            _address(alpha),
            _KINDS[kind],
            offset.size,
            offset.rounds,
            _address(plan),
            _address(tables),
            _address(offset.order),
            _address(signs),
            0 if signs is None else signs.shape[-1],
            _address(g),
            0 if g is None else g.stride(0),
            _address(dx),
            _address(dvalues),
            _address(dalpha),
            _address(dbias),
        ),
    )
    failed = function(name, _variant_for(batch))(packed.buffer_info()[0])
    if failed == -2:
        raise ValueError(f"the support is not sorted positions in 0..{m * n - 1}")
    if failed:
        raise MemoryError(f"no memory for the scratch of a {m} x {n} layer's kernel")


def _variant_for(rows: int) -> str:
    """The variant in use, or of its kind one with fewer lanes: a tile costs the same however few its rows."""
    which = variant()
    lanes = 4 if rows <= 4 else 8
    return f"{which}x{lanes}" if rows <= lanes < LANES[which] else which


def _rows(x: Tensor) -> Tensor:
    """X with the inputs of a row side by side."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
