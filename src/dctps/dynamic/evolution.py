"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps.arguments import flag, whole
from dctps.dynamic.base import Decay, Dynamics, check_fraction, decayed, drop_count, register_dynamics
from dctps.dynamic.support import change_support_, free_positions, smallest
from dctps.nn import DpSLayer

Drop = Literal["magnitude", "signed"]


@register_dynamics("set")
class SET(Dynamics):
    """Every `update_interval` steps each layer moves some of its weights to random places.

    Of a layer's nnz weights the k = int(f nnz) smallest `|values|` are dropped, f as in `RigL`, and as many
    positions grown, drawn from those that were free before; at 0, with slots of 0. Draws are keyed by the
    seed, the layer's name and the step, so that nothing need be sent between processes, and a run that goes
    on draws what it would have drawn.

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
        ValueError: as for `Dynamics`.

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
        self.drop_fraction, self.drop, self.decay = check_fraction(drop_fraction, decay), drop, decay
        self.at_least_one, self.seed = flag("at_least_one", at_least_one), whole("seed", seed)

    def _change(self) -> None:
        step = self.steps + 1
        fraction = decayed(self.drop_fraction, step, self.end, self.decay)
        for layer in self.layers.values():
            dropped = self._dropped(layer, fraction)
            # No more than there are free positions, which a layer of high density has few of.
            room = layer.offset.out_features * layer.offset.in_features - layer.nnz
            dropped = dropped[smallest(layer.values[dropped], min(len(dropped), room))]
            grown = free_positions(layer, len(dropped), f"grow {step}", seed=self.seed)
            change_support_(layer, layer.support[dropped], grown, self.optimizer)

    def _dropped(self, layer: DpSLayer, fraction: float) -> Tensor:
        """Indices into the layer's values."""
        if self.drop == "magnitude":
            count = drop_count(layer.nnz, fraction, at_least_one=self.at_least_one)
            return smallest(layer.values, count)
        found = []
        for sign in (layer.values >= 0, layer.values < 0):
            which = sign.nonzero().squeeze(1)
            count = drop_count(len(which), fraction, at_least_one=self.at_least_one)
            found.append(which[smallest(layer.values[which], count)])
        return torch.cat(found)
