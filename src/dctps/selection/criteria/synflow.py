"""SynFlow: how much of the flow from input to output goes through each weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dctps.arguments import whole
from dctps.nn import DpSLayer
from dctps.selection.criteria.registry import Batches, Layers, Loss, Rounds, register_criterion
from dctps.selection.criteria.scoring import Mode, gradients, mean_of, scored_weights, shrinking


@register_criterion("synflow")
def synflow(
    model: nn.Module, layers: Layers, loss: Loss, batches: Batches, *, rounds: int = 100, mode: Mode = "eval"
) -> Rounds:
    """`|w| * dR/d|w|`, with R the sum of the outputs for an input of ones, all parameters in absolute value.

    Everything is done in float64, since R overflows float32 in deep networks (1e71 in a ResNet50). Round k of
    n keeps density P^(k / n); what was pruned never returns.

    Args:
        model: the dense network.
        layers: whose weights are scored.
        loss: not looked at.
        batches: of the first, the shape of the inputs; no number of it is looked at.
        rounds: n.
        mode: of the norms; with their running statistics they are linear, at initialisation the identity.

    Reference: Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", NeurIPS 2020.
    """
    ones = torch.ones_like(_first_inputs(batches)[:1], dtype=torch.float64)
    _make_positive(model)
    weights = scored_weights(model, layers, mode)

    def score() -> dict[str, Tensor]:
        output = model(ones)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"synflow sums the outputs, and {type(model).__name__} returns a {type(output).__name__}: "
                f"wrap the model so that it returns one tensor"
            )
        g = mean_of([gradients(output.sum(), weights)], weights)
        return {name: g[name].mul_(w.data) for name, w in weights.items()}

    yield from shrinking(weights, whole("rounds", rounds, least=1), score)


def _make_positive(model: nn.Module) -> None:
    """Parameters and floating-point buffers in absolute value and float64; those of DpS layers keep signs."""
    for module in model.modules():
        signed = isinstance(module, DpSLayer)
        for p in module.parameters(recurse=False):
            if p.is_floating_point():
                p.data = p.data.double() if signed else p.data.double().abs()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.double() if signed else buffer.double().abs()


def _first_inputs(batches: Batches) -> Tensor:
    batch: Any = next(iter(batches), None)
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise ValueError(
            "synflow takes the shape of its input from the first batch, a floating-point tensor or a pair "
            "that begins with one: pass batches=[torch.ones(1, 3, 32, 32)]"
        )
    return inputs
