"""Which weights train: a score for each, of which the largest are kept.

A criterion is a function `(model, layers, loss, batches) -> {layer: scores}`, each of its weight's
shape. To add one, decorate it with `register_criterion("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dctps.names import Registry, lookup

Loss = Callable[[nn.Module, Any], Tensor]
Criterion = Callable[
    [nn.Module, Mapping[str, nn.Module], Loss | None, Iterable[Any] | None], dict[str, Tensor]
]

UNSCORED = ("random", "nonzero")
CRITERIA: Registry[Criterion] = Registry("criterion", reserved=UNSCORED)


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Decorator that gives a criterion its name.

    Raises:
        ValueError: the name is taken.
    """
    return CRITERIA.register(name)


def list_criteria() -> list[str]:
    """All names, the two that need no scores first."""
    return [*UNSCORED, *CRITERIA]


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The scoring function behind a name; a function is itself."""
    if isinstance(criterion, str):
        return CRITERIA[lookup("criterion", {name: name for name in list_criteria()}, criterion)]
    return criterion


@register_criterion("magnitude")
def magnitude(
    model: nn.Module, layers: Mapping[str, nn.Module], loss: Loss | None, batches: Iterable[Any] | None
) -> dict[str, Tensor]:
    """|w|."""
    return {name: layer.get_parameter("weight").detach().abs() for name, layer in layers.items()}


def keep_largest(scores: Mapping[str, Tensor], counts: Mapping[str, int] | int) -> dict[str, Tensor]:
    """Supports of the largest scores: exactly as many as asked, ties to the earlier position.

    Args:
        scores: by layer, finite, any shape.
        counts: nnz by layer, or one total over the whole network.

    Returns:
        sorted flat positions by layer, int64.

    Raises:
        ValueError: a score that is not finite.
    """
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"layer {name!r} has scores that are not finite: nothing can be ranked by them")
    if isinstance(counts, int):
        flat = torch.cat([score.reshape(-1) for score in scores.values()])
        kept = _largest(flat, counts)
        ends = torch.tensor([score.numel() for score in scores.values()], device=flat.device).cumsum(0)
        bounds = [0, *torch.searchsorted(kept, ends).tolist()]
        starts = [0, *ends.tolist()[:-1]]
        return {name: kept[bounds[i] : bounds[i + 1]] - starts[i] for i, name in enumerate(scores)}
    return {name: _largest(score.reshape(-1), counts[name]) for name, score in scores.items()}


def _largest(scores: Tensor, count: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.kthvalue(scores, len(scores) - count + 1).values
    above = (scores > threshold).nonzero().squeeze(1)
    tied = (scores == threshold).nonzero().squeeze(1)[: count - len(above)]
    return torch.cat([above, tied]).sort().values
