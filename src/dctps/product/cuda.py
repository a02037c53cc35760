"""The rule on CUDA: which paths take a call, the best first.

In half precision and TF32 a dense product on tensor cores beats D by its FFT at every width that layers have.
In half precision D by two small products on the same cores (`tiles`) beats it where layers are wide and very
sparse, since a nonzero costs a gathered read. In true float32 the dense product is ten times slower: there D
by its FFT and S by torch's CSR products win for wide layers. The limits are estimates, not measured yet.
"""

from __future__ import annotations

import torch

from dctps.product.path import Call

_WIDE = 1024  # least width for `transform`
_SPARSE = 0.04  # greatest density for it
# In half precision: the least width, and up to which density.
_TILES = ((8192, 0.005), (4096, 0.004), (2048, 0.002))
_ROWS = 256  # least batch in half precision, below a width of 4096


def on_cuda(call: Call) -> tuple[str, ...]:
    """The paths in torch operations and Triton, in the order in which they are taken."""
    if transform_wins(call):
        return "transform", "factors", "dense"
    if tiles_win(call):
        return "tiles", "factors", "dense", "transform"
    return "factors", "dense", "transform", "tiles"


def transform_wins(call: Call) -> bool:
    """Whether D by its FFT beats a dense product with W."""
    m, n = call.offset.out_features, call.offset.in_features
    exact = call.dtype == torch.float64 or (call.dtype == torch.float32 and not call.tf32)
    in_rows = call.in_rows and min(m, n) >= _WIDE
    return exact and in_rows and call.nnz <= _SPARSE * m * n


def tiles_win(call: Call) -> bool:
    """Whether D by small products on tensor cores and S by gathers beat a dense product there."""
    m, n = call.offset.out_features, call.offset.in_features
    narrow = min(m, n)
    density = next((most for least, most in _TILES if narrow >= least), 0.0)
    enough = narrow >= 4096 or call.rows >= _ROWS
    return call.in_rows and enough and 0 < call.nnz <= density * m * n
