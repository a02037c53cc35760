"""Which path a convolution takes: a fixed rule on shapes and nnz, so that runs repeat bit for bit.

The costs are nanoseconds on one core for forward and backward, fitted to measurements of
`benchmarks/conv.py`; only their ratios matter.
"""

from __future__ import annotations

from typing import get_args

from dctps.nn.dispatch import Backend
from dctps.offsets import Offset


def choose_conv_backend(backend: Backend, offset: Offset, *, pixels: int, nnz: int, native: bool) -> Backend:
    """`backend` itself, or for `"auto"` the path that the rule estimates to be faster.

    Args:
        backend: `"auto"`, `"dense"` or `"native"`.
        offset: the layer's D.
        pixels: of the output, batch included.
        nnz: of S.
        native: whether the native kernel does this offset, on these tensors.

    Raises:
        ValueError: another backend, or `"native"` where it cannot be.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}: choose from {', '.join(get_args(Backend))}")
    if backend == "transform":
        raise ValueError("only 1 x 1 convolutions without groups and padding have a transform path")
    if backend == "native" and not native:
        raise ValueError(
            f"no native kernel for {offset!r} here: it takes dct and sdct offsets of one group, zero "
            "offsets and depthwise convolutions, on CPU tensors below float64; is it compiled "
            "(`python -m dctps.kernels`)?"
        )
    if backend != "auto" or not native:
        return "dense" if backend == "auto" else backend
    return "native"
