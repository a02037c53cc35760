"""Python's side of the calls: the fields of their structs in C, and the words that C numbers.

The definitions are those of csrc/*/call.h. The library exports their names, and `check_layouts` compares the
two when the library is loaded: where they disagree no call is made.
"""

from __future__ import annotations

import struct
from enum import IntEnum

CHUNK = 64  # images of stacked networks that are side by side in memory
MOST_OPERATIONS = 64  # of a stacked network


# What a kernel returns.
Failure = IntEnum(
    "Failure", "DONE NO_MEMORY BAD_SUPPORT BAD_TABLE TOO_LARGE BAD_LABEL CHANGED BAD_WINDOW", start=0
)
# How D mixes the channels of a pixel.
Mix = IntEnum("Mix", "MIX_NONE MIX_PLAIN MIX_PRODUCT MIX_COSINE MIX_ROWS", start=0)
# What makes D of a linear layer.
Transform = IntEnum("Transform", "NO_TRANSFORM DCT HADAMARD", start=0)
# What an operation of a stacked network does; RELU follows a weighted one.
Kind = IntEnum("Kind", "WEIGHTED RELU POOL", start=0)


class Layout:
    """The arguments of a kernel: 64-bit numbers and addresses, where 0 is an absent tensor.

    Args:
        names: of the fields, in C's order; `name[2]` stands for two numbers, name0 and name1.
        doubles: names of those that are floating-point numbers.
    """

    def __init__(self, names: str, doubles: str = "") -> None:
        self.names = _expanded(names)
        kinds = ("d" if name in doubles.split() else "q" for name in self.names)
        self.pack = struct.Struct("".join(kinds)).pack  # takes that many numbers and no others


def _expanded(names: str) -> list[str]:
    found = []
    for word in names.split():
        name, _, count = word.partition("[")
        found += [f"{name}{i}" for i in range(int(count[:-1]))] if count else [name]
    return found


LINEAR = Layout(
    "batch m n nnz threads half x x_stride y bias values support alpha transform q rounds plan tables order "
    "signs sign_stride g g_stride grad_x grad_values grad_alpha grad_bias"
)
CONV = Layout(
    "batch channels height width outputs out_height out_width groups kernel[2] stride[2] padding[2] "
    "dilation[2] x_strides[4] y_strides[4] grad_x_strides[4] half x bias y grad_x grad_values grad_alpha nnz "
    "support values alpha mix maps rank terms filters first second cosine signs source filter bank plan "
    "tables scratch_floats threads"
)
DEPTHWISE = Layout(
    "batch channels in[2] out[2] kernel[2] stride[2] padding[2] dilation[2] threads x weight bias y "
    "grad_x grad_weight"
)
WEIGHT = Layout(
    "outputs channels taps channels_last threads mix maps rank terms filters first second cosine signs "
    "source filter bank cosines alpha nnz support values weight grad_values grad_alpha"
)
NORM = Layout(
    "images channels pixels channels_last threads training epsilon momentum lower upper x weight bias "
    "running_mean running_var table residual y g grad_x grad_weight grad_bias grad_residual",
    doubles="epsilon momentum lower upper",
)
STACK = Layout(
    "networks operations images chunks threads backward classes ops layers x labels shared offsets "
    "products loss correct"
)
STACK_OPERATION = Layout("kind channels rows columns outputs out_rows out_columns window[2] taps")
STACK_LAYER = Layout(
    "nnz support laid_out start place column readers values alpha bias offset grad_values grad_alpha "
    "grad_bias shared"
)


def check_layouts(exported: str) -> None:
    """Compare the definitions here with those of the library; RuntimeError where they differ.

    `exported` has a line for each: its name, and the names of its fields or words in order.
    """
    lines = dict(line.split(" ", 1) for line in exported.splitlines())
    layouts = [name for name, found in globals().items() if isinstance(found, Layout)]
    for name in [*layouts, *lines]:
        found, theirs = globals().get(name), lines.get(name, "none")
        if isinstance(found, int):
            same = str(found) == theirs
        elif isinstance(found, type) and issubclass(found, IntEnum):
            same = [(word, i) for i, word in enumerate(theirs.split())] == [(e.name, e.value) for e in found]
        else:
            same = isinstance(found, Layout) and found.names == _expanded(theirs)
        if not same:
            raise RuntimeError(
                f"the native library and dctps/kernels/layouts.py disagree about {name}: the library has "
                f"{theirs!r}; no call is safe, so mend the one that is wrong"
            )
