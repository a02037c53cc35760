"""Criteria on a converted network itself: the weights are W = alpha * D + S, with S still zero or trained.

The gradient of W is made in blocks of rows, one after the other, of which only the largest scores so far are
held; it is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn import DpSLayer
from dctps.selection.criteria.ranking import Counts, largest, shortage
from dctps.selection.criteria.registry import Batches, Loss
from dctps.selection.criteria.scoring import (
    Mode,
    cross_entropy,
    needed,
    scalar,
    set_mode,
    untouched,
)

_BLOCK = 1 << 18  # numbers

Records = list[tuple[Tensor, Tensor]]


def choose_on_offset(
    criterion: str,
    model: nn.Module,
    layers: Mapping[str, DpSLayer],
    loss: Loss | None,
    batches: Batches | None,
    counts: Counts,
    *,
    mode: Mode = "train",
) -> dict[str, Tensor]:
    """The supports of the largest |W * dL/dW| (`"offset-snip"`) or |dL/dW| (`"offset-gradient"`).

    Held are the inputs and output gradients of all layers over the batches, one layer's W, a block of its
    gradient, and the largest scores so far.

    Args:
        criterion: one of the two.
        model: converted; afterwards as it was before.
        layers: of the model, by name; their supports play no part but for what S adds to W.
        loss: default `cross_entropy`.
        batches: gone through once; L is the mean over them.
        counts: nnz of the whole network, or by layer.
        mode: of the norms.

    Returns:
        sorted flat positions by layer, int64.

    Raises:
        ValueError: no batches, scores that are not finite, or too few that are not zero.
    """
    with untouched(model):
        set_mode(model, mode)
        records = _records(model, layers, loss or cross_entropy, needed(batches, criterion))
        totals = {"": counts} if isinstance(counts, int) else dict(counts)
        best = {group: _Largest(count) for group, count in totals.items()}
        sizes, nonzero, start = {}, {}, 0
        for name, layer in layers.items():
            group = best["" if isinstance(counts, int) else name]
            sizes[name], nonzero[name], begin = 0, 0, start if isinstance(counts, int) else 0
            for w, g in _gradient_blocks(layer, records[name]):
                scores = (w * g if criterion == "offset-snip" else g).abs().reshape(-1)
                if not bool((scores < torch.inf).all()):
                    raise ValueError(
                        f"layer {name!r} has scores that are not finite: nothing can be ranked by them"
                    )
                group.add(scores, begin + sizes[name])
                sizes[name] += len(scores)
                nonzero[name] += int(torch.count_nonzero(scores))
            del records[name]
            start += sizes[name]
    if problem := shortage(nonzero, sizes, counts, criterion):
        raise ValueError(problem)
    if not isinstance(counts, int):
        return {name: group.positions for name, group in best.items()}
    ends = torch.tensor(list(sizes.values()), device="cpu").cumsum(0)
    positions = best[""].positions.cpu()
    below = [0, *torch.searchsorted(positions, ends).tolist()]
    starts = [0, *ends.tolist()]
    return {name: positions[below[i] : below[i + 1]] - starts[i] for i, name in enumerate(sizes)}


class _Largest:
    """The `count` largest scores of those that have come, in the order of their positions."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.positions = torch.empty(0, dtype=torch.int64, device="cpu")
        self.scores = self.positions.float()

    def add(self, scores: Tensor, start: int) -> None:
        """Take in the scores at the positions from `start` on, which come after all before."""
        self.scores = torch.cat([self.scores.to(scores), scores])
        places = torch.arange(start, start + len(scores), device=scores.device)
        self.positions = torch.cat([self.positions.to(scores.device), places])
        if len(self.scores) > self.count:
            kept = largest(self.scores, self.count)
            self.scores, self.positions = self.scores[kept], self.positions[kept]


def _records(
    model: nn.Module, layers: Mapping[str, DpSLayer], loss: Loss, batches: Batches
) -> dict[str, Records]:
    """The inputs of each layer and the gradients at its outputs, of each of its calls."""
    records: dict[str, Records] = {name: [] for name in layers}
    count = 0
    for batch in batches:
        count += 1
        with _recording(layers, records):
            value = scalar(loss, model, batch)
            # The alphas' gradients are not wanted, but the outputs' come on the way to them.
            torch.autograd.grad(
                value, [a for layer in layers.values() if (a := layer.alpha) is not None], allow_unused=True
            )
    if not count:
        raise ValueError("the batches are empty: a criterion needs data to score with")
    return {name: [(x, g / count) for x, g in calls] for name, calls in records.items()}


@contextmanager
def _recording(layers: Mapping[str, DpSLayer], records: Mapping[str, Records]) -> Iterator[None]:
    def hook_of(name: str) -> Any:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda g: records[name].append((x, g.detach())))

        return record

    handles = []
    for name, layer in layers.items():
        assert layer.alpha is not None, "layers without an offset are refused before"
        layer.alpha.requires_grad_()
        # Before hooks of the user's, which may put something else in the output's place.
        handles.append(layer.register_forward_hook(hook_of(name), prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gradient_blocks(layer: DpSLayer, calls: Records) -> Iterator[tuple[Tensor, Tensor]]:
    """W and its gradient, some rows at a time, from the first to the last."""
    dense = layer.merged()
    dense.bias = None
    whole = dense.weight.detach()
    rows = len(whole)
    # Other layers' rows are not independent of each other.
    if isinstance(dense, nn.Linear) or dense.groups == 1:
        rows = max(1, _BLOCK // layer.offset.in_features)
    outputs = -1 if isinstance(dense, nn.Linear) else 1 - whole.dim()
    for first in range(0, len(whole), rows):
        w = whole[first : first + rows]
        dense.weight = nn.Parameter(w)
        total = torch.zeros_like(w)
        for x, g in calls:
            y = dense.forward(x)
            total += torch.autograd.grad(y, dense.weight, g.narrow(outputs, first, len(w)))[0]
        yield w, total
