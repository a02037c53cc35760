"""Which weights of each layer train: from a density, an allocation and a criterion, or as they are given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dctps.arguments import real
from dctps.networks.surgery import replace_
from dctps.nn import DpSLayer
from dctps.selection.allocation import Allocation, allocate, check_names
from dctps.selection.criteria import Criterion, Loss, ranking, registry
from dctps.selection.criteria.ranking import Counts
from dctps.selection.criteria.registry import Layers, Masks, Rounds, ScoreBlocks, Scores, name_of
from dctps.selection.criteria.scoring import NoData, cross_entropy, untouched
from dctps.sparse import budget

Options = Mapping[str, Any]
"""Which weights of a layer train, as an argument of `from_dense`."""


@dataclass
class Scorer:
    """What a criterion needs to choose: the dense network, or the converted one with S = 0.

    `convert` makes the converted one of each layer, with no weight that trains.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    loss: Loss | None
    batches: Iterable[Any] | None
    convert: Callable[[], Mapping[nn.Module, DpSLayer]]

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):  # two criteria may look, and a criterion several times
            self.batches = list(self.batches)

    def choose(self, criterion: str | Criterion, counts: Counts) -> dict[str, Tensor]:
        """The supports that `criterion` keeps; the model is afterwards as it was."""
        chosen = partial(choose, criterion, loss=self.loss, batches=self.batches, counts=counts)
        found = registry.find_criterion(criterion)
        if counts == 0:  # no score is needed, and none may be there
            return {name: torch.empty(0, dtype=torch.int64, device="cpu") for name in self.layers}
        if not registry.is_on_converted(found):
            return chosen(model=self.model, layers=self.layers)
        converted = self.convert()
        scored = {name: converted[layer] for name, layer in self.layers.items()}
        if any(layer.alpha is None for layer in scored.values()):
            raise ValueError(
                f"criterion {name_of(criterion)!r} scores W = alpha * D + S, which is 0 under the offset "
                f"'zero': choose another offset, or a criterion of the dense weights such as 'snip'"
            )
        trial = replace_(self.model, converted)
        try:
            return chosen(model=trial, layers=scored)
        finally:
            replace_(trial, {made: dense for dense, made in converted.items()})


def choose_weights(
    density: float,
    allocation: str | Mapping[str, float] | Allocation | Criterion | None,
    criterion: str | Mapping[str, Tensor] | Criterion,
    scorer: Scorer,
    seed: int,
) -> Mapping[str, Options]:
    """Which weights of each layer train, as arguments of `from_dense`; the rest is as for `sparsify_`."""
    layers = scorer.layers
    if isinstance(criterion, Mapping):
        start, end = "the supports must name each converted layer", "; filter_fn leaves a layer dense"
        check_names(criterion, layers, start, end)
        return {name: {"support": support} for name, support in criterion.items()}
    if criterion == "nonzero":
        return {name: {} for name in layers}
    shapes = {name: tuple(layer.get_parameter("weight").shape) for name, layer in layers.items()}
    total = budget(density, sum(map(math.prod, shapes.values())))
    counts: Counts = total
    if registry.is_criterion(allocation):
        _refuse_meta(layers, f"allocation {name_of(allocation)!r}")
        kept = scorer.choose(allocation, total)
        counts = {n: int(s.sum()) if s.dtype == torch.bool else len(s) for n, s in kept.items()}
    elif allocation not in (None, "global"):
        counts = allocate(allocation, shapes, total, seed=seed)  # type: ignore[arg-type]
    elif criterion == "random" and allocation == "global":
        raise ValueError(
            "allocation 'global' is a ranking of the whole network, and criterion 'random' ranks "
            "nothing: choose 'uniform' or another allocation"
        )
    elif criterion == "random":
        counts = allocate("epl", shapes, total, seed=seed)
    if criterion == "random":
        return {name: {"nnz": counts[name]} for name in layers}  # type: ignore[index]
    _refuse_meta(layers, f"criterion {name_of(criterion)!r}")
    return {name: {"support": support} for name, support in scorer.choose(criterion, counts).items()}


def _refuse_meta(layers: Mapping[str, nn.Module], what: str) -> None:
    for name, layer in layers.items():
        if layer.weight.is_meta:
            raise ValueError(
                f"{what} needs weights, and layer {name!r} is on the meta device: build the model for real, "
                f"or use criterion='random'"
            )


def choose(
    criterion: str | Criterion,
    model: nn.Module,
    layers: Layers,
    loss: Loss | None,
    batches: Iterable[Any] | None,
    counts: Counts,
) -> dict[str, Tensor]:
    """The weights that a criterion keeps, by layer: bool masks of their shapes, or sorted flat positions.

    The model is afterwards as before: parameters, buffers, gradients, modes and random state. `loss` is by
    default `cross_entropy`. Scores that cannot be ranked, too few that are not zero, or missing `batches`,
    are a ValueError.
    """
    name = name_of(criterion)
    data = NoData(name) if batches is None else list(batches) if isinstance(batches, Iterator) else batches
    with untouched(model):
        found = registry.find_criterion(criterion)(model, layers, loss or cross_entropy, data)
        if isinstance(found, Generator):
            with closing(found):
                return _last_of(found, layers, counts, name)
        scores = _checked(found, layers, name)
        if any(isinstance(score, Iterator) for score in scores.values()):
            sizes = {
                layer: math.prod(m.offset.shape)
                if isinstance(m, DpSLayer)
                else m.get_parameter("weight").numel()
                for layer, m in layers.items()
            }
            return ranking.keep_largest_of_blocks(cast("ScoreBlocks", scores), sizes, counts, name)
        scores = cast("Scores", scores)
        if problem := _shortage(scores, counts, name):
            raise ValueError(problem)
        return ranking.keep_largest(scores, counts)


def _last_of(rounds: Rounds, layers: Layers, counts: Counts, name: str) -> Masks:
    """What is kept at the end of the schedule.

    On the way weights lose their connection to the output, and their score with it. Where fewer than the
    schedule keeps have a score left, the last scores that could rank the whole budget decide on the rest.
    """
    earlier: Scores | None = None
    scores, progress = _round(rounds, None, layers, name)
    while True:
        problem = _shortage(scores, counts, name)
        if problem is None:
            earlier = scores
        elif earlier is None:
            raise ValueError(problem)
        sizes = {layer: score.numel() for layer, score in scores.items()}
        kept = ranking.keep_scored_first(scores, earlier, ranking.counts_at(progress, sizes, counts))
        if progress >= 1:
            break
        scores, progress = _round(rounds, kept, layers, name)
    if problem is not None:
        warnings.warn(
            f"after the last step of {name}: {problem}. So earlier scores chose the rest, which may "
            f"have no connection",
            stacklevel=2,
        )
    return kept


def _round(rounds: Rounds, kept: Masks | None, layers: Layers, name: str) -> tuple[Scores, float]:
    """The scores and the progress of the next round."""
    try:
        handed: Any = rounds.send(cast("Masks", kept))
    except StopIteration:
        raise ValueError(
            f"criterion {name!r} ended before its progress was 1: it must yield (scores, progress) with the "
            f"progress 1 at last"
        ) from None
    if not isinstance(handed, tuple) or len(handed) != 2:
        raise ValueError(f"criterion {name!r} must yield (scores, progress), got a {type(handed).__name__}")
    progress = real(f"the progress of criterion {name!r}", handed[1])
    if progress <= 0:
        raise ValueError(f"the progress of criterion {name!r} must be in (0, 1], got {progress}")
    return cast("Scores", _checked(handed[0], layers, name)), progress


def _shortage(scores: Scores, counts: Counts, name: str) -> str | None:
    sizes = {layer: score.numel() for layer, score in scores.items()}
    return ranking.shortage(ranking.count_nonzero(scores), sizes, counts, name)


def _checked(found: Any, layers: Layers, criterion: str) -> Scores | ScoreBlocks:
    """The scores that a criterion returned, one entry for each layer; blocks are checked as they come."""
    start = f"criterion {criterion!r}"
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{start} returned {_kind(found)}: it must return {{layer: scores}}, a tensor of the weight's "
            f"shape for each layer"
        )
    check_names(found, layers, f"{start} must score each of the layers", "; a score of -inf is never kept")
    if found and all(isinstance(scores, Iterator) for scores in found.values()):
        whats = {name: f"{start}: the scores of layer {name!r}" for name in layers}
        return {name: map(partial(_check_scores, what=what), found[name]) for name, what in whats.items()}
    return {
        name: _check_scores(found[name], f"{start}: the scores of layer {name!r}", layer.weight)  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


def _check_scores(scores: object, what: str, weight: Tensor | None = None) -> Tensor:
    """Scores that can be ranked, apart from any graph; `weight` is what they belong to, None for a block."""
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


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
