"""The rule on CUDA: which paths take a call, the best first.

A dense product on tensor cores beats D by its FFT at every width that layers have, so that in half precision
and TF32 W is made for the call. In true float32 the dense product is ten times slower: there D by its FFT and
S by torch's CSR products win for wide and very sparse layers. The limits are estimates, not measured yet.
"""

from __future__ import annotations

import torch

from dctps.product.path import Call

_WIDE = 1024  # least width for `transform`
_SPARSE = 0.04  # greatest density for it


def on_cuda(call: Call) -> tuple[str, ...]:
    """The paths in torch operations, in the order in which they are taken."""
    if transform_wins(call):
        return "transform", "factors", "dense"
    return "factors", "dense", "transform"


def transform_wins(call: Call) -> bool:
    """Whether D by its FFT beats a dense product with W."""
    m, n = call.offset.out_features, call.offset.in_features
    exact = call.dtype == torch.float64 or (call.dtype == torch.float32 and not call.tf32)
    in_rows = call.in_rows and min(m, n) >= _WIDE
    return exact and in_rows and call.nnz <= _SPARSE * m * n
