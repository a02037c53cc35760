"""From scores to supports: the largest are kept, exactly as many as asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dctps.networks.dense_gradient import Largest
from dctps.selection.criteria.registry import Masks, ScoreBlocks, Scores

Counts = int | Mapping[str, int]
"""nnz of the whole network, or by layer."""


def keep_largest(scores: Scores, counts: Counts) -> Masks:
    """Masks of the largest scores: exactly as many as asked, ties to the earlier layer and position.

    Args:
        scores: by layer, any shape; -inf where nothing may be kept.
        counts: nnz by layer, or one total over the whole network.

    Returns:
        bool masks by layer, of the scores' shapes.
    """
    if isinstance(counts, int):
        device = next(iter(scores.values())).device  # the layers of one network may be on several
        flat = largest(torch.cat([score.reshape(-1).to(device) for score in scores.values()]), counts)
        parts = flat.split([score.numel() for score in scores.values()])
        return {
            name: part.view(score.shape).to(score.device)
            for (name, score), part in zip(scores.items(), parts, strict=True)
        }
    return {
        name: largest(score.reshape(-1), counts[name]).view(score.shape) for name, score in scores.items()
    }


def keep_largest_of_blocks(
    scores: ScoreBlocks, sizes: Mapping[str, int], counts: Counts, criterion: str
) -> dict[str, Tensor]:
    """`keep_largest` for scores that come in blocks, of which only the largest so far are held.

    Args:
        scores: of each layer, one block after the other.
        sizes: of the layers, their numbers of weights.
        counts: nnz by layer, or one total over the whole network.
        criterion: its name, for messages.

    Returns:
        sorted flat positions by layer, int64, on the CPU.

    Raises:
        ValueError: fewer scores that are not zero than weights to keep, or not one for each weight.
    """
    whole = isinstance(counts, int)
    totals = {"": counts} if isinstance(counts, int) else counts
    best = {group: Largest(count, -math.inf) for group, count in totals.items()}
    nonzero, start = dict.fromkeys(sizes, 0), 0
    device: torch.device | None = None
    for name, size in sizes.items():
        position = 0
        for block in scores[name]:
            device = device or block.device  # the layers of one network may be on several
            best["" if whole else name].add(start + position, block.reshape(-1).to(device))
            position += block.numel()
            nonzero[name] += count_nonzero({name: block})[name]
        if position != size:
            raise ValueError(f"criterion {criterion!r} gave {position} scores for {size} weights of {name!r}")
        start += size if whole else 0
    if problem := shortage(nonzero, sizes, counts, criterion):
        raise ValueError(problem)
    found = {group: largest.found(torch.empty(0))[0].cpu() for group, largest in best.items()}
    if not whole:
        return found
    ends = torch.tensor(list(sizes.values())).cumsum(0)
    parts = found[""].tensor_split(torch.searchsorted(found[""], ends)[:-1])
    return {name: part - (end - sizes[name]) for name, part, end in zip(sizes, parts, ends, strict=True)}


def keep_scored_first(scores: Scores, earlier: Scores, counts: Counts) -> Masks:
    """`keep_largest`, with zeros told from each other by `earlier` scores; -inf stays out."""
    nonzero = count_nonzero(scores)
    scored: Counts
    rest: Counts
    if isinstance(counts, int):
        total = min(counts, sum(nonzero.values()))
        scored, rest = total, counts - total
    else:
        scored = {name: min(count, nonzero[name]) for name, count in counts.items()}
        rest = {name: counts[name] - count for name, count in scored.items()}
    kept = keep_largest(scores, scored)
    if scored == counts:
        return kept
    out = {name: kept[name] | (score == -torch.inf) for name, score in scores.items()}
    others = keep_largest({name: earlier[name].masked_fill(out[name], -torch.inf) for name in scores}, rest)
    return {name: kept[name] | others[name] for name in scores}


def largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of a flat tensor, ties to the earlier position."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.kthvalue(scores, len(scores) - count + 1).values
    kept = scores > threshold
    tied = (scores == threshold).nonzero().squeeze(1)
    kept[tied[: count - int(kept.sum())]] = True
    return kept


def counts_at(progress: float, sizes: Mapping[str, int], counts: Counts) -> Counts:
    """How many to keep at `progress` in (0, 1]: N^(1 - progress) K^progress, of the network or of each layer.

    So the density falls exponentially, from 1 to the one asked for. A layer that is to be left with none has
    one until the end, so that it passes a signal till then.
    """

    def between(size: int, count: int) -> int:
        if progress >= 1:
            return count
        return round(math.exp((1 - progress) * math.log(size) + progress * math.log(max(count, 1))))

    if isinstance(counts, int):
        return between(sum(sizes.values()), counts)
    return {name: between(sizes[name], count) for name, count in counts.items()}


def shortage(
    nonzero: Mapping[str, int], sizes: Mapping[str, int], counts: Counts, criterion: str
) -> str | None:
    """Why scores cannot say which weights to keep; None if they can.

    Zeros cannot be told from each other: there must be as many other scores as weights to keep, of the
    network or of each layer. Nothing is to be ranked where all are kept.

    Args:
        nonzero: how many scores of each layer are not zero.
        sizes: of the layers.
        counts: what is to be kept.
        criterion: its name.
    """
    if isinstance(counts, int):
        where = {"this network": (sum(nonzero.values()), sum(sizes.values()), counts)}
    else:
        where = {f"layer {name!r}": (nonzero[name], sizes[name], counts[name]) for name in counts}
    remedy = (
        "Use criterion='random' with allocation='epl' or 'erk', which need no scores, or start those layers "
        "from other values"
    )
    for place, (found, size, count) in where.items():
        if found >= count or size == count:
            continue
        if found == 0:
            return (
                f"criterion {criterion!r} cannot rank {place}: all {size:,} scores are zero. Where the last "
                f"layer or residual branches start at zero (Fixup), or S = 0, every weight * gradient is, "
                f"and with it the scores of snip, grasp, force, iter-snip, synflow and offset-snip. {remedy}"
            )
        return (
            f"criterion {criterion!r} cannot choose {count:,} weights of {place}: only {found:,} of "
            f"{size:,} scores are not zero. Ask for fewer, or score on more data. {remedy}"
        )
    return None


def count_nonzero(scores: Scores) -> dict[str, int]:
    """How many scores of each layer are neither zero nor -inf."""
    return {name: int(((score != 0) & (score > -torch.inf)).sum()) for name, score in scores.items()}
