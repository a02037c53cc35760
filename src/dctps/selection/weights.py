"""Which weights of each layer train: from a density, an allocation and a criterion, or as they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn import DpSLayer
from dctps.nn.surgery import replace_
from dctps.selection.allocation import Allocation, allocate, check_names
from dctps.selection.choose import choose
from dctps.selection.criteria import Criterion, Loss
from dctps.selection.criteria.ranking import Counts
from dctps.selection.criteria.registry import find_criterion, is_criterion, is_on_converted, name_of
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
        if not is_on_converted(find_criterion(criterion)):
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
    layers: Mapping[str, nn.Module],
    scorer: Scorer,
    seed: int,
) -> Mapping[str, Options]:
    """Which weights of each layer train, as arguments of `from_dense`; the rest is as for `sparsify_`."""
    if isinstance(criterion, Mapping):
        check_names(
            criterion,
            layers,
            "the supports must name each converted layer",
            "; filter_fn leaves a layer dense",
        )
        return {name: {"support": support} for name, support in criterion.items()}
    if criterion == "nonzero":
        return {name: {} for name in layers}
    shapes = {name: tuple(layer.get_parameter("weight").shape) for name, layer in layers.items()}
    total = budget(density, sum(map(math.prod, shapes.values())))
    counts: Counts = total
    if is_criterion(allocation):
        _refuse_meta(layers, f"allocation {name_of(allocation)!r}")
        kept = scorer.choose(allocation, total)
        counts = {n: int(s.sum()) if s.dtype == torch.bool else len(s) for n, s in kept.items()}
    elif allocation not in (None, "global"):
        counts = allocate(allocation, shapes, total, seed=seed)  # type: ignore[arg-type]
    elif criterion == "random":
        if allocation == "global":
            raise ValueError(
                "allocation 'global' is a ranking of the whole network, and criterion 'random' ranks "
                "nothing: choose 'uniform' or another allocation"
            )
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
