"""W made once for a call and kept for its backward pass, where it is no more than what is kept anyway.

The other paths keep x alone and make W twice (depthwise ones keep it too, beside x). Where W is small against
x or S that saves no memory worth its time: then W is a tensor of the graph, and torch's own convolution reads
it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dctps.nn.depthwise import is_by_channels
from dctps.nn.maps import Conv2d
from dctps.nn.native import is_traced
from dctps.nn.native_conv import native_weight, native_weight_backward
from dctps.nn.taps import is_by_taps
from dctps.nn.torch_paths import weight_backward
from dctps.nn.weight import Weight
from dctps.offsets import Offset

_OF_INPUT = 32  # numbers of x for one of W
_OF_SUPPORT = 3  # weights for a nonzero: its value and position take the memory of three


def keeps_weight(x: Tensor, nnz: int, offset: Offset, op: Conv2d) -> bool:
    """Whether W is so kept: torch's convolution is what reads it, and it is small.

    It has at most 1/32 of x's numbers, or takes at most the memory of S's values and support.
    """
    size = math.prod(offset.shape)
    if is_by_taps(x, offset.shape, op) or is_by_channels(x, op, offset.out_features):
        return False
    return _OF_INPUT * size <= x.numel() or size <= _OF_SUPPORT * nnz


class KeptWeight(Function):
    """alpha * D + S by native code, in float32, in a layout."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        alpha: Tensor | None,
        support: Tensor,
        offset: Offset,
        layout: torch.memory_format,
    ) -> Tensor:
        """W."""
        ctx.offset, ctx.layout = offset, layout
        ctx.save_for_backward(values, alpha, support)
        ctx.save_for_forward(values, alpha, support)
        return native_weight(Weight(values, alpha, support, offset), layout)

    @staticmethod
    def backward(ctx: Any, by_weight: Tensor) -> tuple[Tensor | None, ...]:
        """What W's gradient says of values and alpha."""
        values, alpha, support = ctx.saved_tensors
        weight, needs = Weight(values, alpha, support, ctx.offset), ctx.needs_input_grad[:2]
        backward = weight_backward if is_traced(by_weight) else native_weight_backward
        found = backward(by_weight, weight, *needs)
        return (*found, None, None, None)

    @staticmethod
    def jvp(ctx: Any, d_values: Tensor | None, d_alpha: Tensor | None, *_: None) -> Tensor:
        """W's tangent: W is linear in values and alpha."""
        values, alpha, support = ctx.saved_tensors
        d_values = torch.zeros_like(values) if d_values is None else d_values
        d_alpha = torch.zeros_like(alpha) if d_alpha is None and alpha is not None else d_alpha
        return made_weight(Weight(d_values, d_alpha, support, ctx.offset), ctx.layout)


def made_weight(weight: Weight, layout: torch.memory_format) -> Tensor:
    """W as a tensor of the graph, in float32, in a layout."""
    made: Tensor = KeptWeight.apply(*weight, layout)  # type: ignore[no-untyped-call]
    return made
