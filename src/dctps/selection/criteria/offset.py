"""Criteria on a converted network itself: the weights are W = alpha * D + S, with S still zero.

The gradient of W is made in blocks of rows, one after the other, of which only the largest scores so far are
held; it is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from dctps.networks.dense_gradient import Capture, Pair, gradient_blocks
from dctps.nn import DpSLayer
from dctps.selection.criteria.registry import Batches, Layers, Loss, ScoreBlocks, register_criterion
from dctps.selection.criteria.scoring import Mode, scalar, set_mode

_BLOCK = 1 << 18  # numbers
Score = Callable[[Tensor, Tensor], Tensor]  # of a weight and its gradient


@register_criterion("offset-snip", on_converted=True)
def offset_snip(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, mode: Mode = "train"
) -> ScoreBlocks:
    """`|W * dL/dW|`, W = alpha * D + S: what SNIP is for the network that trains.

    Held are the inputs and output gradients of all layers over the batches, one layer's W, and a block of its
    gradient.

    Args:
        model: the converted network.
        layers: its DpS layers, by name.
        loss: L of a batch.
        batches: gone through once; L is the mean over them.
        mode: of the norms.
    """
    return _scores(model, layers, loss, batches, mode, lambda w, g: w * g)


@register_criterion("offset-gradient", on_converted=True)
def offset_gradient(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, mode: Mode = "train"
) -> ScoreBlocks:
    """`|dL/dW|`, at W = alpha * D + S: where a step of gradient descent would move W most.

    The arguments are those of `offset_snip`.
    """
    return _scores(model, layers, loss, batches, mode, lambda w, g: g)


def _scores(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, mode: Mode, score: Score
) -> ScoreBlocks:
    set_mode(model, mode)
    converted = cast("dict[str, DpSLayer]", dict(layers))
    alphas = [layer.alpha.requires_grad_() for layer in converted.values() if layer.alpha is not None]
    # The inputs of each layer and the gradients at its outputs, of each of its calls.
    calls: dict[str, list[Pair]] = {name: [] for name in layers}
    capture, count = Capture(converted.values(), None), 0
    capture.start()
    try:
        for batch in batches:
            count += 1
            # The alphas' gradients are not wanted, but the outputs' come on the way to them.
            torch.autograd.grad(scalar(loss, model, batch), alphas, allow_unused=True)
            for name, layer in converted.items():
                calls[name] += [(x.detach(), g.detach()) for x, g in capture.take(layer)]
    finally:
        capture.stop()
    if not count:
        raise ValueError("the batches are empty: a criterion needs data to score with")

    def blocks(name: str, layer: DpSLayer) -> Iterator[Tensor]:
        w = layer.to_dense().detach().reshape(-1)
        # The calls of a layer are let go once it is scored.
        pairs = [(x, g / count) for x, g in calls.pop(name)]
        for start, g in gradient_blocks(layer, pairs, _BLOCK * w.itemsize):
            yield score(w[start : start + len(g)], g).abs_()

    return {name: blocks(name, layer) for name, layer in converted.items()}
