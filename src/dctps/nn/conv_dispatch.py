"""Which path a convolution takes: a fixed rule on shapes and nnz, so that runs repeat bit for bit.

    dense    W = alpha * D + S is made for the one call, and the dense kernel applied
    native   D by its filters, S by its nonzeros, on strips (`kernels/csrc/conv.c`)

The costs are nanoseconds of one core for forward and backward together, fitted to measurements of
`dctps bench conv --backends dense native`; only their ratios matter.
"""

from __future__ import annotations

from dctps.nn.dispatch import Backend, Costs, cheapest, check_backend, refusal
from dctps.offsets import Offset

_DENSE_MULTIPLY = 0.051  # a weight at a pixel, in the dense kernel's three products
_DENSE_WEIGHT = 7.0  # a weight, once: in the dense kernel's layout, and made and read here
_DENSE_NONZERO = 4.0  # its place in W and in W's gradient
_DENSE_WIDTH = 16  # channels that the dense kernel computes at least,
_FEW = 4  # save for the few of images, for which it has a way of its own
_MOVE = 1.1  # a channel at a pixel, into and out of strips
_FILTER = 0.025  # a multiply-add of D at a pixel
_NONZERO = 0.105  # a nonzero at a position of a strip
_NATIVE_NONZERO = 95.0  # a nonzero, once: its place in the lists, and fetching its rows


def choose_conv_backend(
    backend: Backend,
    offset: Offset,
    *,
    read: int,
    written: int,
    positions: int,
    nnz: int,
    native: bool,
) -> Backend:
    """`backend` itself, or for `"auto"` the path that the rule estimates to be faster.

    Args:
        backend: `"auto"`, `"dense"` or `"native"`.
        offset: the layer's D.
        read: pixels of the input, batch included.
        written: pixels of the output.
        positions: of the strips of all phases: pixels of the output and the zeros between them.
        nnz: of S.
        native: whether the native kernel does this offset, on these tensors.

    Raises:
        ValueError: another backend, or `"native"` where it cannot be.
    """
    if backend == "auto":
        sizes = {"read": read, "written": written, "positions": positions}
        return cheapest(conv_costs(offset, **sizes, nnz=nnz, native=native))
    check_backend(backend, offset.layer)
    if backend == "transform":
        raise refusal(
            backend, offset, "only 1 x 1 convolutions without groups and padding have a transform path"
        )
    if backend == "native" and not native:
        raise refusal(
            backend,
            offset,
            f"no native kernel for {offset!r} here: it takes dct and sdct offsets of one group, zero "
            "offsets and depthwise convolutions, on CPU tensors below float64; is it compiled "
            "(`python -m dctps.kernels`)?",
        )
    return backend


def conv_costs(offset: Offset, *, read: int, written: int, positions: int, nnz: int, native: bool) -> Costs:
    """The rule's estimates for `choose_conv_backend`, which takes the least.

    Returns:
        nanoseconds of one core for the call, forward and backward, by path.
    """
    m, channels = offset.shape[:2]
    taps = offset.in_features // channels
    width = max(m, _DENSE_WIDTH) * (channels if channels <= _FEW else max(channels, _DENSE_WIDTH)) * taps
    dense = written * width * _DENSE_MULTIPLY + m * channels * taps * _DENSE_WEIGHT + nnz * _DENSE_NONZERO
    # Depthwise convolutions have a kernel of their own, which takes W (`depthwise.py`).
    if not native or (channels == 1 and offset.groups > 1):
        return {"dense": dense}
    by_strips = _MOVE * (read * channels * offset.groups + written * m)
    by_strips += _FILTER * written * offset.filter_cost
    by_strips += nnz * (_NONZERO * positions + _NATIVE_NONZERO)
    return {"dense": dense, "native": by_strips}
