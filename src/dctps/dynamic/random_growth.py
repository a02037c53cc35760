"""SET and DSR: drop small weights, grow at random."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps.arguments import real, whole
from dctps.dynamic import base
from dctps.dynamic.base import Decay, Dynamics, register_dynamics
from dctps.dynamic.support import change_support_, free_count, free_positions, smallest
from dctps.nn import DpSLayer
from dctps.selection.allocation import share_out

Drop = Literal["magnitude", "signed"]


@register_dynamics("set")
class SET(Dynamics):
    """Every `update_interval` steps each layer moves some of its weights to random places.

    Of a layer's nnz weights the k = int(f nnz) smallest `|values|` are dropped, f as in `RigL`, and as many
    positions grown, drawn from the positions that were free before; at 0, with slots of 0. The seed, the
    layer's name and the step key the draws, so that nothing need be sent between processes, and a run that
    goes on draws what it would have drawn.

    Args:
        model: with DpS layers.
        optimizer: as for `RigL`.
        update_interval: in steps; the authors move weights once an epoch.
        drop_fraction: zeta in the paper.
        end: the step from which on the supports stay.
        drop: `"magnitude"`, or the authors' `"signed"`: of the values that are not negative the int(f n)
            smallest, of the negative ones the int(f n) largest.
        decay: of the drop fraction: `"cosine"`, RigL's schedule, or the authors' `"constant"`.
        at_least_one: as for `RigL`.
        seed: of the draws.

    Raises:
        ValueError: as for `Dynamics`, or so few weights in every layer that none would ever move.

    Reference: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity", Nature Communications 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        update_interval: int = 100,
        drop_fraction: float = 0.3,
        end: float,
        drop: Drop = "magnitude",
        decay: Decay = "cosine",
        at_least_one: bool = False,
        seed: int = 0,
    ) -> None:
        if drop not in ("magnitude", "signed"):
            raise ValueError(f"drop must be 'magnitude' or 'signed', got {drop!r}")
        super().__init__(model, optimizer, update_interval=update_interval, end=end)
        self._set_share(drop_fraction, decay, at_least_one)
        self.drop, self.seed = drop, whole("seed", seed)

    def _change(self) -> None:
        for layer in self.layers.values():
            dropped = self._dropped(layer)
            # No more than there are free positions, which a layer of high density has few of.
            dropped = dropped[smallest(layer.values[dropped], min(len(dropped), free_count(layer)))]
            grown = free_positions(layer, len(dropped), f"grow {self.steps + 1}", seed=self.seed)
            change_support_(layer, layer.support[dropped], grown, self.optimizer)

    def _dropped(self, layer: DpSLayer) -> Tensor:
        """Indices into the layer's values."""
        values = layer.values
        if self.drop == "magnitude":
            return smallest(values, self._count(len(values)))
        signs = [which.nonzero().squeeze(1) for which in (values >= 0, values < 0)]
        return torch.cat([which[smallest(values[which], self._count(len(which)))] for which in signs])


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
        if base.default_reduce() is not None and not in_data_parallel:
            raise ValueError(
                "DSR changes the sizes of the layers' values, which DistributedDataParallel cannot follow: "
                "use RigL or SET, or one process; in_data_parallel=True if your loop adds up gradients itself"
            )
        super().__init__(model, optimizer, update_interval=update_interval, end=end)
        self.drop_fraction, self.threshold = base.check_fraction(drop_fraction), threshold
        self.seed = whole("seed", seed)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: all that the rest depends on, except network and optimizer."""
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a ValueError where it is no such state."""
        threshold = float(state["threshold"])
        if not 0 < threshold < math.inf:
            raise ValueError(f"a DSR's state has the threshold {threshold}")
        super().load_state_dict(state)
        self.threshold = threshold

    def _change(self) -> None:
        layers = {name: layer for name, layer in self.layers.items() if layer.nnz}
        free = {name: free_count(layer) for name, layer in layers.items()}
        below = {
            name: int((layer.values.detach().abs() < self.threshold).sum()) for name, layer in layers.items()
        }
        counts = {name: min(below[name], layer.nnz - 1) for name, layer in layers.items()}  # not the largest
        dropped = sum(counts.values())
        if dropped > sum(free.values()):  # there is no room for so many: the largest of them stay
            counts = _share_out(counts, counts, sum(free.values()))
        survivors = {name: layer.nnz - counts[name] for name, layer in layers.items()}
        grown = _share_out(survivors, free, sum(counts.values()))
        for name, layer in layers.items():
            new = free_positions(layer, grown[name], f"grow {self.steps + 1}", seed=self.seed)
            old = layer.support[smallest(layer.values, counts[name])]
            change_support_(layer, old, new, self.optimizer)

        wanted = self.drop_fraction * sum(layer.nnz for layer in layers.values())
        if dropped > 1.1 * wanted:
            self.threshold /= 2
        elif dropped < 0.9 * wanted:
            self.threshold *= 2


def _share_out(shares: dict[str, int], room: dict[str, int], total: int) -> dict[str, int]:
    """`total` weights, shared out over the layers in these proportions, no more than there is room for."""
    exact = {name: Fraction(share) for name, share in shares.items()}
    return share_out(exact, {name: (size,) for name, size in room.items()}, total)
