"""Where outside its support a layer's dense gradient is largest, without ever holding that gradient.

It is made in blocks of whole rows, each of which is ranked against the best so far and dropped. At any moment
there are one block (two where torch gives it channels-last), O(count) candidates, and one number for each
weight of the support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dctps.nn import DpSConv2d, DpSLayer, DpSLinear

Pair = tuple[Tensor, Tensor]
Reduce = Callable[[Tensor], object]
Rows = Callable[[int, int], Tensor]

BLOCK_BYTES = 8 << 20
_CHUNK = 1 << 13  # scores that are compared, and at worst sorted, at a time
_SPARE = 1 << 10  # candidates held beyond twice those wanted, before they are sorted


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
        layer: `DpSLinear` or `DpSConv2d`.
        pairs: of the layer's input x and its output's gradient dL/dy, one for each use of the layer.
        count: how many.
        block_bytes: the most for a block of dense gradient, but at least one row.
        reduce: sums a tensor over processes, in place; called with each block in turn.

    Raises:
        TypeError: another kind of layer.
    """
    support = layer.support
    at_support = layer.values.new_zeros(support.shape, dtype=_dtype(layer))
    largest = _Largest(count)
    for start, block in _blocks(layer, pairs, block_bytes) if count else ():
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


def can_grow(layer: DpSLayer) -> bool:
    """Whether `largest_gradients` knows this kind of layer."""
    return isinstance(layer, tuple(_ROWS))


def _blocks(layer: DpSLayer, pairs: Sequence[Pair], block_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """The flat position at which a block begins, and the block, (rows * n,)."""
    rows_of = next((rows for kind, rows in _ROWS.items() if isinstance(layer, kind)), None)
    if rows_of is None:
        raise TypeError(
            f"the dense gradient of layer {layer.offset.layer!r}, a {type(layer).__name__}, is not known here"
        )
    m, n, dtype = layer.offset.out_features, layer.offset.in_features, _dtype(layer)
    in_group = m // layer.offset.groups
    most = max(1, block_bytes // (n * dtype.itemsize))
    # Whole groups, or rows within one: a block never straddles two groups' inputs.
    step = most // in_group * in_group if most >= in_group else most
    shared = [rows_of(layer, x.detach().to(dtype), g.detach().to(dtype)) for x, g in pairs if x.numel()]
    start = 0
    while start < m:
        stop = min(start + step, m)
        if step < in_group:
            stop = min(stop, (start // in_group + 1) * in_group)
        # No local name, which would keep this block while the next is made.
        yield (
            start * n,
            _sum(shared, start, stop) if shared else layer.values.new_zeros((stop - start) * n, dtype=dtype),
        )
        start = stop


def _sum(shared: Sequence[Rows], start: int, stop: int) -> Tensor:
    block = shared[0](start, stop).contiguous().reshape(-1)
    for rows in shared[1:]:
        block += rows(start, stop).reshape(-1)
    return block


def _linear_rows(layer: DpSLayer, x: Tensor, g: Tensor) -> Rows:
    """dW[r, c] = sum_b g[b, r] x[b, c]."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return lambda start, stop: g[:, start:stop].T @ x


def _conv_rows(layer: DpSLayer, x: Tensor, g: Tensor) -> Rows:
    """The convolution's weight gradient, of some outputs and the inputs that their groups see."""
    assert isinstance(layer, DpSConv2d)
    images, padding = layer._padded(x if x.dim() == 4 else x.unsqueeze(0))
    by_images = g if g.dim() == 4 else g.unsqueeze(0)
    _, channels, kh, kw = layer.offset.shape
    in_group = layer.out_channels // layer.groups

    def rows(start: int, stop: int) -> Tensor:
        first, last = start // in_group, (stop - 1) // in_group + 1
        weight = x.new_zeros(1).expand(stop - start, channels, kh, kw)  # its shape is all that counts
        by_weight: Tensor = torch.ops.aten.convolution_backward(
            by_images[:, start:stop],
            images[:, first * channels : last * channels],
            weight,
            None,
            layer.stride,
            padding,
            layer.dilation,
            False,
            (0, 0),
            last - first,
            (False, True, False),
        )[1]
        return by_weight

    return rows


_ROWS: dict[type[DpSLayer], Callable[[DpSLayer, Tensor, Tensor], Rows]] = {
    DpSLinear: _linear_rows,
    DpSConv2d: _conv_rows,
}


class _Largest:
    """The `count` largest positive scores of a stream in ascending position; ties to the earlier."""

    def __init__(self, count: int) -> None:
        self.count, self.threshold, self.held = count, 0.0, 0
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, start: int, scores: Tensor) -> None:
        """Rank (k,) scores at positions from `start` on."""
        for chunk in scores.split(_CHUNK):
            # Once `count` are held, an equal score at a later position loses.
            better = (chunk > self.threshold).nonzero().squeeze(1)
            if len(better):
                self.parts.append((better + start, chunk[better]))
                self.held += len(better)
                if self.held > 2 * self.count + _SPARE:
                    self._prune()
            start += len(chunk)

    def found(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sorted positions, and scores of the dtype and device of `like`."""
        if not self.parts:
            return like.new_empty(0, dtype=torch.int64), like.new_empty(0)
        self._prune()
        return self.parts[0]

    def _prune(self) -> None:
        positions, scores = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        if len(scores) >= self.count:
            kept = scores.sort(descending=True, stable=True).indices[: self.count].sort().values
            positions, scores = positions[kept], scores[kept]
            self.threshold = float(scores.min())
        self.parts, self.held = [(positions, scores)], len(scores)


def _dtype(layer: DpSLayer) -> torch.dtype:
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32
