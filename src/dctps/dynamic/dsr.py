"""DSR: one threshold for the whole network, and weights that move between layers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dctps.arguments import real, whole
from dctps.dynamic.base import Dynamics, check_fraction, default_reduce, register_dynamics
from dctps.dynamic.support import change_support_, free_positions, smallest
from dctps.selection.allocation import share_out


@register_dynamics("dsr")
class DSR(Dynamics):
    """Every `update_interval` steps the weights below a threshold move to where more have survived.

    All values of magnitude below H are dropped, of a layer all but the largest. If they were more than 1.1
    times drop_fraction * K, K being the nnz of the whole network, H is halved for the next time; if fewer
    than 0.9 times, doubled. As many are grown, shared out over the layers in proportion to the weights that
    survived there, at random among the positions that were free before; at 0, with slots of 0. The sum of
    nnz stays exactly K, a layer's does not: its `values` change size.

    Args:
        model: with DpS layers. Under `DistributedDataParallel`, whose buckets have fixed sizes, take another.
        optimizer: as for `RigL`.
        update_interval: in steps; the authors' rewire period.
        drop_fraction: of K: how many weights are to move each time. The authors' number is N_p.
        end: the step from which on the supports stay.
        threshold: the first H.
        seed: of the draws.
        in_data_parallel: says that what reduces the gradients of several processes takes their sizes anew in
            each step, as `dctps train` does.

    Raises:
        ValueError: as for `Dynamics`, or several processes without `in_data_parallel`.

    Reference: Mostafa and Wang, "Parameter efficient training of deep convolutional neural networks by
    dynamic sparse reparameterization", ICML 2019, algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        update_interval: int = 100,
        drop_fraction: float = 0.1,
        end: float,
        threshold: float = 1e-3,
        seed: int = 0,
        in_data_parallel: bool = False,
    ) -> None:
        threshold = real("threshold", threshold)
        if not threshold > 0:
            raise ValueError(f"threshold must be above 0, got {threshold}: the authors begin with 0.001")
        if default_reduce() is not None and not in_data_parallel:
            raise ValueError(
                "DSR changes the sizes of the layers' values, which DistributedDataParallel cannot follow: "
                "use RigL or SET, or one process; in_data_parallel=True if your loop adds up gradients itself"
            )
        super().__init__(model, optimizer, update_interval=update_interval, end=end)
        self.drop_fraction, self.threshold = check_fraction(drop_fraction), threshold
        self.seed = whole("seed", seed)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest depends on beside network and optimizer: plain numbers."""
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it is no such state.
        """
        threshold = float(state["threshold"])
        if not 0 < threshold < math.inf:
            raise ValueError(f"a DSR's state has the threshold {threshold}")
        super().load_state_dict(state)
        self.threshold = threshold

    def _change(self) -> None:
        free = {
            name: layer.offset.out_features * layer.offset.in_features - layer.nnz
            for name, layer in self.layers.items()
            if layer.nnz
        }
        layers = {name: self.layers[name] for name in free}
        total = sum(layer.nnz for layer in layers.values())
        counts = {name: _below(layer.values, self.threshold) for name, layer in layers.items()}
        dropped = sum(counts.values())
        # Where there is no room for so many, the largest of them stay.
        excess = dropped - sum(free.values())
        if excess > 0:
            counts = share_out(
                _shares(counts), {name: (count,) for name, count in counts.items()}, dropped - excess
            )
        survivors = {name: layer.nnz - counts[name] for name, layer in layers.items()}
        places = {name: (room,) for name, room in free.items()}
        grown = share_out(_shares(survivors), places, sum(counts.values()))
        for name, layer in layers.items():
            new = free_positions(layer, grown[name], f"grow {self.steps + 1}", seed=self.seed)
            old = layer.support[smallest(layer.values, counts[name])]
            change_support_(layer, old, new, self.optimizer)

        wanted = self.drop_fraction * total
        if dropped > 1.1 * wanted:
            self.threshold /= 2
        elif dropped < 0.9 * wanted:
            self.threshold *= 2


def _below(values: torch.Tensor, threshold: float) -> int:
    """How many `|values|` are below the threshold, the layer's largest not counted."""
    return min(int((values.detach().abs() < threshold).sum()), len(values) - 1)


def _shares(counts: dict[str, int]) -> dict[str, Fraction]:
    return {name: Fraction(count) for name, count in counts.items()}
