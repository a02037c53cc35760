"""Where outside its support a layer's dense gradient is largest, without ever holding that gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dctps.networks.dense_gradient import BLOCK_BYTES, Largest, Pair, gradient_blocks, gradient_dtype
from dctps.nn import DpSLayer

Reduce = Callable[[Tensor], object]


class Growth(NamedTuple):
    """What `largest_gradients` found.

    Attributes:
        positions: int64, sorted flat positions outside the support.
        scores: `|dL/dW|` there.
        at_support: `|dL/dW|` at the support, (nnz,).
    """

    positions: Tensor
    scores: Tensor
    at_support: Tensor


def largest_gradients(
    layer: DpSLayer,
    pairs: Sequence[Pair],
    count: int,
    *,
    block_bytes: int = BLOCK_BYTES,
    reduce: Reduce | None = None,
) -> Growth:
    """The `count` largest `|dL/dW|` outside the support of a layer, W = alpha * D + S.

    Exactly that many, ties to the earlier position; fewer where fewer gradients are not 0, since a gradient
    of 0 says nothing for a weight. Peak memory: one block (two where torch makes it channels-last), 4 bytes
    for each weight of the support, and to sort candidates 40 bytes for each of 2 `count` + 9,216.

    Args:
        layer: linear or convolutional.
        pairs: of the layer's input x and its output's gradient dL/dy, one for each use of the layer.
        count: how many.
        block_bytes: the most for a block of dense gradient, but at least one row.
        reduce: sums a tensor over processes, in place; called with each block in turn.

    Raises:
        TypeError: another kind of layer.
    """
    support = layer.support
    at_support = layer.values.new_zeros(support.shape, dtype=gradient_dtype(layer))
    largest = Largest(count)
    for start, block in gradient_blocks(layer, pairs, block_bytes) if count else ():
        if reduce is not None:
            reduce(block)
        block.abs_()
        bounds = torch.tensor([start, start + len(block)], device=support.device)
        low, high = torch.searchsorted(support, bounds).tolist()
        here = support[low:high] - start
        at_support[low:high] = block[here]
        block[here] = 0.0
        largest.add(start, block)
        del block
    positions, scores = largest.found(at_support)
    return Growth(positions, scores, at_support)
