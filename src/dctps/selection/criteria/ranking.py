"""From scores to supports: the largest are kept, exactly as many as asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dctps.networks.dense_gradient import Largest
from dctps.selection.criteria.registry import Masks, ScoreBlocks, Scores

Counts = int | Mapping[str, int]
"""nnz of the whole network, or by layer."""


def groups(counts: Counts, layers: Iterable[str]) -> list[tuple[str, list[str], int]]:
    """What is ranked as one: a name for messages, its layers, and how many weights it keeps."""
    if isinstance(counts, int):
        return [("this network", list(layers), counts)]
    return [(f"layer {name!r}", [name], count) for name, count in counts.items()]


def keep_largest(scores: Scores, counts: Counts) -> Masks:
    """Masks of the largest scores, exactly `counts`; of equal scores the earlier layer and position wins.

    A score of -inf is never kept.
    """
    kept = {}
    for _, names, count in groups(counts, scores):
        device = scores[names[0]].device  # the layers of one network may be on several
        mask = largest(torch.cat([scores[name].reshape(-1).to(device) for name in names]), count)
        for name, part in zip(names, mask.split([scores[name].numel() for name in names]), strict=True):
            kept[name] = part.view(scores[name].shape).to(scores[name].device)
    return kept


def keep_largest_of_blocks(
    scores: ScoreBlocks, sizes: Mapping[str, int], counts: Counts, criterion: str
) -> dict[str, Tensor]:
    """`keep_largest` for scores in blocks, of which only the largest so far are held: sorted flat positions.

    They are int64, on the CPU. Fewer scores that are not zero than weights to keep, or not one score for each
    weight, are a ValueError.
    """
    found: dict[str, Tensor] = {}
    nonzero = dict.fromkeys(sizes, 0)
    for _, names, count in groups(counts, sizes):
        best, position, device = Largest(count, -math.inf), 0, None
        ends = torch.tensor([sizes[name] for name in names]).cumsum(0)
        for name, end in zip(names, ends.tolist(), strict=True):
            for block in scores[name]:
                device = device or block.device  # the layers of one network may be on several
                best.add(position, block.reshape(-1).to(device))
                position += block.numel()
                nonzero[name] += count_nonzero({name: block})[name]
            if position != end:
                n = position - end + sizes[name]
                raise ValueError(
                    f"criterion {criterion!r} gave {n} scores for {sizes[name]} weights of {name!r}"
                )
        kept = best.found(torch.empty(0))[0].cpu()
        parts = kept.tensor_split(torch.searchsorted(kept, ends)[:-1])
        found |= {n: part - (end - sizes[n]) for n, part, end in zip(names, parts, ends, strict=True)}
    if problem := shortage(nonzero, sizes, counts, criterion):
        raise ValueError(problem)
    return found


def keep_scored_first(scores: Scores, earlier: Scores, counts: Counts) -> Masks:
    """`keep_largest`, where `earlier` scores rank the weights whose score is zero; -inf stays out."""
    kept: Masks = {}
    for _, names, count in groups(counts, scores):
        own = {name: scores[name] for name in names}
        scored = min(count, sum(count_nonzero(own).values()))
        kept |= keep_largest(own, scored)
        if scored < count:
            out = {name: kept[name] | (score == -torch.inf) for name, score in own.items()}
            rest = {name: earlier[name].masked_fill(out[name], -torch.inf) for name in names}
            kept |= {name: kept[name] | mask for name, mask in keep_largest(rest, count - scored).items()}
    return kept


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

    Nothing ranks weights whose score is zero. So at least as many as are kept, of the network or of each
    layer, must have another score, unless all weights are kept. `nonzero` says how many have.
    """
    remedy = (
        "Use criterion='random' with allocation='epl' or 'erk', which need no scores, or start those layers "
        "from other values"
    )
    for where, names, count in groups(counts, sizes):
        found, size = sum(nonzero[name] for name in names), sum(sizes[name] for name in names)
        if found >= count or size == count:
            continue
        if found == 0:
            return (
                f"criterion {criterion!r} cannot rank {where}: all {size:,} scores are zero. Where the last "
                f"layer or residual branches start at zero (Fixup), or S = 0, every weight * gradient is, "
                f"and with it the scores of snip, grasp, force, iter-snip, synflow and offset-snip. {remedy}"
            )
        return (
            f"criterion {criterion!r} cannot choose {count:,} weights of {where}: only {found:,} of "
            f"{size:,} scores are not zero. Ask for fewer, or score on more data. {remedy}"
        )
    return None


def count_nonzero(scores: Scores) -> dict[str, int]:
    """How many scores of each layer are neither zero nor -inf."""
    return {name: int(((score != 0) & (score > -torch.inf)).sum()) for name, score in scores.items()}
