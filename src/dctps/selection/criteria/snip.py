"""Magnitude; SNIP, how much the loss feels each weight; and SNIP in steps, on networks that grow sparser."""

from __future__ import annotations

from torch import Tensor, nn

from dctps.arguments import whole
from dctps.selection.criteria.registry import Batches, Layers, Loss, Rounds, register_criterion
from dctps.selection.criteria.scoring import Mode, mean_gradients, scored_weights, shrinking


@register_criterion("magnitude")
def magnitude(model: nn.Module, layers: Layers, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """`|w|`. Neither loss nor batches are looked at."""
    return {name: layer.get_parameter("weight").detach().abs() for name, layer in layers.items()}


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
    weights = scored_weights(model, layers, mode)
    g = mean_gradients(model, weights, loss, batches)
    return {name: g[name].mul_(w.detach()).abs_() for name, w in weights.items()}


@register_criterion("force")
def force(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, steps: int = 60, mode: Mode = "train"
) -> Rounds:
    """`|w * dL/dw|` at w * c_t: the dense weights w, the gradient at the network that mask c_t has pruned.

    What was pruned has a score too, and may return. Step t of T keeps density P^(t / T).

    Args:
        model: the dense network.
        layers: whose weights are scored.
        loss: L of a batch; the authors' code has `nll_on_logits`.
        batches: gone through once in each step: a list gives all steps the same data, a loader that shuffles
            gives each its own.
        steps: T.
        mode: of the norms.

    Reference: de Jorge et al., "Progressive Skeletonization: Trimming more fat from a network at
    initialization", ICLR 2021.
    """
    weights = scored_weights(model, layers, mode)
    dense = {name: w.data for name, w in weights.items()}
    for step in range(1, whole("steps", steps, least=1) + 1):
        g = mean_gradients(model, weights, loss, batches)
        kept = yield {name: g[name].mul_(w).abs_() for name, w in dense.items()}, step / steps
        for name, w in weights.items():
            w.data = dense[name] * kept[name]


@register_criterion("iter-snip")
def iter_snip(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, steps: int = 60, mode: Mode = "train"
) -> Rounds:
    """`|w * dL/dw|` at w * c_t among what is left: as `force`, but what was pruned never returns.

    The arguments are those of `force`.

    Reference: de Jorge et al., as for `force`.
    """
    weights = scored_weights(model, layers, mode)

    def score() -> dict[str, Tensor]:
        g = mean_gradients(model, weights, loss, batches)
        return {name: g[name].mul_(w.data).abs_() for name, w in weights.items()}

    yield from shrinking(weights, whole("steps", steps, least=1), score)
