"""The moving average of a network, also while its supports move."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import swa_utils

from dctps.dynamic.support import change_support_
from dctps.identity.identified import Identified
from dctps.nn import DpSLayer


class AveragedModel(swa_utils.AveragedModel):
    """torch's `AveragedModel` of a network with DpS layers, whose supports may move (RigL, SET, DSR).

    With the decay d, the average A of S is on the present support of the network what a dense average is::

        A <- d A + (1 - d) S    at the positions of the present support,    A <- 0    elsewhere

    A grown position enters with the average's value there, which is 0, and a dropped one leaves; if it comes
    back, it begins at 0 again. W is linear in alpha and in S, and D is fixed: while the supports stay, the
    average is that of the dense weights. With `use_buffers` floating-point buffers are averaged too.

    Arguments and attributes are those of `torch.optim.swa_utils.AveragedModel`.
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take `model`, the network that was given at first or a copy of it, into the average.

        A layer with another offset than its average is a ValueError.
        """
        pairs = list(zip(self.module.modules(), model.modules(), strict=True))
        for own, theirs in pairs:
            if isinstance(own, DpSLayer):
                _follow_(own, theirs)  # type: ignore[arg-type]
        super().update_parameters(model)
        for own, theirs in pairs:
            if self.use_buffers and isinstance(own, Identified):  # torch averages integers too
                for key in {"support", "identity"} & own._buffers.keys():
                    own.get_buffer(key).copy_(theirs.get_buffer(key))


def _follow_(own: DpSLayer, theirs: DpSLayer) -> None:
    """Move the average of a layer to the layer's present support."""
    if not own.differs_from(theirs):
        return
    if own.offset != theirs.offset:
        raise ValueError(
            f"layer {theirs.offset.layer!r} has another offset than its average ({theirs.offset.spec} and "
            f"{own.offset.spec}): make the average again after loading another network"
        )
    support = theirs.support.to(own.support.device)
    dropped = own.support[torch.isin(own.support, support, invert=True)]
    grown = support[torch.isin(support, own.support, invert=True)]
    change_support_(own, dropped, grown)
