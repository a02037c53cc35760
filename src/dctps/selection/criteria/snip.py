"""SNIP: how much the loss feels each weight."""

from __future__ import annotations

from torch import Tensor, nn

from dctps.selection.criteria.registry import Batches, Layers, Loss, register_criterion
from dctps.selection.criteria.scoring import Mode, mean_gradients, scored_weights, set_mode


@register_criterion("snip")
def snip(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, mode: Mode = "train"
) -> dict[str, Tensor]:
    """`|w * dL/dw|`, the loss's derivative in a factor on w.

    Args:
        model: the dense network, scored with the weights that it will train from.
        layers: whose weights are scored.
        loss: L of a batch.
        batches: gone through once; L is the mean over them.
        mode: of the norms; the authors' code has `"eval"`.

    Reference: Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning", ICLR 2019.
    """
    set_mode(model, mode)
    weights = scored_weights(layers)
    g = mean_gradients(model, weights, loss, batches)
    return {name: g[name].mul_(w.detach()).abs_() for name, w in weights.items()}
