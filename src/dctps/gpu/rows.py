"""A layer on rows by the kernels of `row_kernels.py`: D by small matrix products, S by gathered columns.

    y        = alpha * D x + S x + b
    d x      = alpha * D^T g + S^T g
    d values = (g^T x) at the support
    d alpha  = <D^T g, x>, accumulated in float64 over rows

W is never made. x and g are transposed for S, a copy each, and S^T is sorted for the call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dctps.gpu.launch import device_of, is_interpreted, launch
from dctps.gpu.products import Products

SPARSE = {"OUTPUTS": 16, "BATCH": 64, "BLOCK": 32}
GRADIENT = {"BLOCK": 16, "BATCH": 64}
_BLOCK = 256
_LARGEST = 4096  # entries that a program of `adjoint_rows` holds at a time

Needs = tuple[bool, bool, bool]  # of x, values, alpha


def apply(
    x: Tensor,
    products: Products | None,
    alpha: Tensor | None,
    values: Tensor,
    support: Tensor,
    bias: Tensor | None,
    shape: tuple[int, int],
) -> Tensor:
    """y of rows x.

    Args:
        x: (batch, n), contiguous; float32, bfloat16 or float16.
        products: D; None: there is none.
        alpha: (1,), with `products`.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in the m x n matrix.
        bias: (m,) or None.
        shape: (m, n).

    Returns:
        (batch, m), in x's dtype. Where there are D and S, S x is rounded to it once before D x is added.
    """
    m, _ = shape
    y = x.new_empty(len(x), m)
    if not len(x):
        return y
    with device_of(x):
        added = None
        if len(values) or products is None:
            added = y if products is None else torch.empty_like(y)
            plain = bias if products is None else None
            launch("sparse_rows", *sparse_arguments(added, plain, values, support, _transposed(x), shape))
        if products is not None and alpha is not None:
            launch("apply_rows", *apply_arguments(y, x, added, alpha, bias, products))
    return y


def gradients(
    g: Tensor,
    x: Tensor,
    products: Products | None,
    alpha: Tensor | None,
    values: Tensor,
    support: Tensor,
    needs: Needs,
    shape: tuple[int, int],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, values and alpha, where `needs` says so, from that of y; see `apply`."""
    m, n = shape
    need_x, need_values, need_alpha = needs
    grad_x = torch.empty_like(x) if need_x else None
    grad_values = torch.zeros_like(values) if need_values else None
    grad_alpha = None if alpha is None or not need_alpha else torch.zeros_like(alpha)
    if not len(x):
        return grad_x, grad_values, grad_alpha
    with device_of(x):
        added, gt = None, g
        sparse = len(values) > 0 or products is None
        if sparse and (need_x or need_values):
            gt = _transposed(g)
        if sparse and grad_x is not None:
            added = grad_x if products is None else torch.empty_like(x)
            order = (support % n * m + support // n).sort()
            turned = values.index_select(0, order.indices), order.values
            launch("sparse_rows", *sparse_arguments(added, None, *turned, gt, (n, m)))
        if grad_values is not None and len(values):
            launch("sparse_gradient", *gradient_arguments(grad_values, support, gt, _transposed(x), n))
        if products is not None and alpha is not None and (grad_x is not None or grad_alpha is not None):
            parts = None
            if grad_alpha is not None:
                count = len(x) * -(-products.sides[1] // _part(products))
                parts = x.new_empty(count, dtype=torch.float64)
            launch("adjoint_rows", *adjoint_arguments(grad_x, g, x, added, alpha, parts, products))
            if grad_alpha is not None and parts is not None:
                numbers = {"grad_alpha": grad_alpha, "parts": parts, "count": len(parts), "BLOCK": _BLOCK}
                launch("add_parts", (1,), numbers)
    return grad_x, grad_values, grad_alpha


def _transposed(x: Tensor) -> Tensor:
    return x.T.contiguous()


Arguments = tuple[tuple[int, ...], dict[str, Any]]  # the grid, and a kernel's arguments


def apply_arguments(
    y: Tensor, x: Tensor, added: Tensor | None, alpha: Tensor, bias: Tensor | None, products: Products
) -> Arguments:
    """Those of `apply_rows`."""
    given = {
        "y": y,
        "x": x,
        "added": x if added is None else added,
        "alpha": alpha,
        "bias": x if bias is None else bias,
    }
    kinds = {"ADDED": added is not None, "BIASED": bias is not None}
    return (len(x),), {**given, **_tables(products, x, y.shape[1]), **kinds}


def adjoint_arguments(
    grad_x: Tensor | None,
    g: Tensor,
    x: Tensor,
    added: Tensor | None,
    alpha: Tensor,
    parts: Tensor | None,
    products: Products,
) -> Arguments:
    """Those of `adjoint_rows`."""
    given = {
        "grad_x": x if grad_x is None else grad_x,
        "grad_y": g,
        "x": x,
        "added": x if added is None else added,
        "alpha": alpha,
        "parts": x if parts is None else parts,
    }
    kinds: dict[str, Any] = {
        "ADDED": added is not None,
        "SUMMED": parts is not None,
        "STORED": grad_x is not None,
    }
    kinds["PART"] = part = _part(products)
    grid = len(x), -(-products.sides[1] // part)
    return grid, {**given, **_tables(products, x, g.shape[1]), **kinds}


def _part(products: Products) -> int:
    """Columns of a tile that a program of `adjoint_rows` takes."""
    a, b = map(_padded, products.sides)
    largest = _LARGEST // 2 if products.order is not None and a * b > _LARGEST else _LARGEST
    return max(16, min(b, largest // a))


def _tables(products: Products, x: Tensor, m: int) -> dict[str, Any]:
    """D, the sizes, and how the kernels are compiled for them."""
    a, b = products.sides
    return {
        "first": products.first,
        "between": products.first if products.between is None else products.between,
        "last": products.last,
        "signs": x if products.signs is None else products.signs,
        "order": x if products.order is None else products.order,
        "n": x.shape[1],
        "m": m,
        "q": a * b,
        "a": a,
        "b": b,
        "COMPLEX": products.between is not None,
        "SIGNED": products.signs is not None,
        "ORDERED": products.order is not None,
        "BLOCKS": products.blocks,
        "WHOLE": (_padded(a), _padded(b)) == (a, b) and a * b == x.shape[1] == m // products.blocks,
        "OPERAND": _operand(x.dtype),
        "BA": _padded(a),
        "BB": _padded(b),
        "num_warps": _warps(a * b),
    }


def sparse_arguments(
    y: Tensor, bias: Tensor | None, values: Tensor, support: Tensor, xt: Tensor, shape: tuple[int, int]
) -> Arguments:
    """Those of `sparse_rows`."""
    m, n = shape
    batch = xt.shape[1]
    given = {"y": y, "bias": y if bias is None else bias, "values": values, "support": support, "xt": xt}
    numbers = {"nnz": len(values), "batch": batch, "m": m, "n": n, "BIASED": bias is not None}
    grid = -(-m // SPARSE["OUTPUTS"]), -(-batch // SPARSE["BATCH"])
    return grid, {**given, **numbers, "OPERAND": _operand(xt.dtype), **SPARSE}


def gradient_arguments(grad_values: Tensor, support: Tensor, gt: Tensor, xt: Tensor, n: int) -> Arguments:
    """Those of `sparse_gradient`."""
    nnz = len(support)
    given = {"grad_values": grad_values, "support": support, "gt": gt, "xt": xt}
    numbers = {"nnz": nnz, "batch": xt.shape[1], "n": n}
    return (-(-nnz // GRADIENT["BLOCK"]),), {**given, **numbers, **GRADIENT}


def _operand(dtype: torch.dtype) -> Any:
    """In which dtype products are taken; Triton's interpreter computes bfloat16 wrongly."""
    import triton.language as tl  # noqa: PLC0415

    names = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return tl.float32 if is_interpreted() else names.get(dtype, tl.float32)


def _padded(side: int) -> int:
    """The side of a tile that `tl.dot` takes."""
    return max(16, 1 << (side - 1).bit_length())


def _warps(q: int) -> int:
    """Of a program; the fewest with which no configuration in half precision spills."""
    return 4 if q <= 1024 else 8
