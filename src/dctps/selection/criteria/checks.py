"""What is wrong with the scores of a criterion, said before anything is ranked by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dctps.selection.criteria.registry import Layers, ScoreBlocks, Scores


def checked(found: Any, layers: Layers, criterion: str) -> Scores | ScoreBlocks:
    """The scores that a criterion returned, one entry for each layer; blocks are checked as they come.

    Args:
        found: what it returned, or handed over in one of its rounds.
        layers: that were to be scored.
        criterion: its name.

    Raises:
        ValueError: no mapping, a layer that is missing or unknown, or scores that cannot be ranked.
    """
    start = f"criterion {criterion!r}"
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{start} returned {_kind(found)}: it must return {{layer: scores}}, a tensor of the weight's "
            f"shape for each layer"
        )
    missing, unknown = [n for n in layers if n not in found], [n for n in found if n not in layers]
    if missing or unknown:
        raise ValueError(
            f"{start} must score each of the layers: missing {missing}, not layers {unknown}; a score of "
            f"-inf is never kept"
        )
    if found and all(isinstance(scores, Iterator) for scores in found.values()):
        return {name: _blocks(found[name], f"{start}: the scores of layer {name!r}") for name in layers}
    return {
        name: check_scores(found[name], f"{start}: the scores of layer {name!r}", layer.weight)  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


def check_scores(scores: object, what: str, weight: Tensor | None = None) -> Tensor:
    """Scores that can be ranked, apart from any graph.

    Args:
        scores: of one layer, or a block of them.
        what: they are, to begin the message with.
        weight: that they must have the shape and device of (None: they are a block).

    Raises:
        ValueError: no tensor, another shape or device, no real floating-point numbers, nan or infinity.
    """
    if not isinstance(scores, Tensor):
        raise ValueError(f"{what} are {_kind(scores)}: give a tensor of the weight's shape")
    if weight is not None and scores.shape != weight.shape:
        raise ValueError(f"{what} have shape {tuple(scores.shape)}, and its weight {tuple(weight.shape)}")
    if not scores.is_floating_point():
        remedy = ".abs() makes real numbers of them" if scores.is_complex() else ".float() converts them"
        raise ValueError(f"{what} are {scores.dtype}, and floating-point numbers are ranked: {remedy}")
    if weight is not None and scores.device != weight.device:
        raise ValueError(f"{what} are on {scores.device}, and its weight on {weight.device}: move them there")
    if not bool((scores < torch.inf).all()):
        raise ValueError(
            f"{what} are not finite: {int(scores.isnan().sum()):,} of {scores.numel():,} are nan, "
            f"{int((scores == torch.inf).sum()):,} are infinite. Nothing can be ranked by them: look at the "
            f"loss, the inputs and the weights"
        )
    return scores.detach()


def _blocks(blocks: Iterator[Tensor], what: str) -> Iterator[Tensor]:
    for block in blocks:
        yield check_scores(block, what)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
