"""Let a criterion choose the weights that train, and leave the model as it was."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import closing

from torch import nn

from dctps.selection.criteria.ranking import (
    Counts,
    count_nonzero,
    counts_at,
    keep_largest,
    keep_scored_first,
    shortage,
)
from dctps.selection.criteria.registry import (
    Batches,
    Criterion,
    Layers,
    Loss,
    Masks,
    Rounds,
    Scores,
    find_criterion,
    name_of,
)
from dctps.selection.criteria.scoring import untouched


def choose(
    criterion: str | Criterion,
    model: nn.Module,
    layers: Layers,
    loss: Loss | None,
    batches: Batches | None,
    counts: Counts,
) -> Masks:
    """The weights that a criterion keeps.

    Args:
        criterion: a registered name or a function (`dctps.selection.criteria.registry`).
        model: the dense network; parameters, buffers, gradients, modes and random state are afterwards as
            before.
        layers: whose weights are chosen from, by name.
        loss: for the criterion.
        batches: for the criterion.
        counts: nnz of the whole network, or by layer.

    Returns:
        bool masks by layer, of the weights' shapes.

    Raises:
        ValueError: an unknown name, scores that are not finite, or too few that are not zero.
    """
    name = name_of(criterion)
    with untouched(model):
        found = find_criterion(criterion)(model, layers, loss, batches)
        if isinstance(found, Mapping):
            if problem := _shortage(found, counts, name):
                raise ValueError(problem)
            return keep_largest(found, counts)
        with closing(found) as rounds:
            return _last_of(rounds, counts, name)


def _last_of(rounds: Rounds, counts: Counts, name: str) -> Masks:
    """What is kept at the end of the schedule.

    On the way weights lose their connection to the output, and their score with it. Where fewer than the
    schedule keeps have a score left, the last scores that could rank the whole budget decide on the rest.
    """
    earlier: Scores | None = None
    scores, progress = next(rounds)
    while True:
        problem = _shortage(scores, counts, name)
        if problem is None:
            earlier = scores
        elif earlier is None:
            raise ValueError(problem)
        sizes = {layer: score.numel() for layer, score in scores.items()}
        kept = keep_scored_first(scores, earlier, counts_at(progress, sizes, counts))
        if progress >= 1:
            break
        scores, progress = rounds.send(kept)
    if problem is not None:
        warnings.warn(
            f"after the last step of {name}: {problem}. So earlier scores chose the rest, which may "
            f"have no connection",
            stacklevel=2,
        )
    return kept


def _shortage(scores: Scores, counts: Counts, name: str) -> str | None:
    sizes = {layer: score.numel() for layer, score in scores.items()}
    return shortage(count_nonzero(scores), sizes, counts, name)
