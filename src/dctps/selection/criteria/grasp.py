"""GraSP: keep what the gradient's own norm needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dctps.arguments import real
from dctps.selection.criteria.registry import Batches, Layers, Loss, register_criterion
from dctps.selection.criteria.scoring import Mode, gradients, mean_gradients, mean_of, scalar, scored_weights


@register_criterion("grasp")
def grasp(
    model: nn.Module,
    layers: Layers,
    loss: Loss,
    batches: Batches,
    *,
    temperature: float = 200.0,
    mode: Mode = "train",
) -> dict[str, Tensor]:
    """W * (H g): to first order, -w * (H g) is half of what removing w adds to the gradient's squared norm.

    So the smallest -w * (H g) are kept, and those go whose removal lets the norm grow most.

    Args:
        model: the dense network; its operations need second derivatives.
        layers: whose weights are scored; g and H are in these alone.
        loss: L of a batch.
        batches: gone through once and kept, so that g and H are of the same data.
        temperature: divides the logits, so that the softmax is far from saturated.
        mode: of the norms.

    Reference: Wang, Zhang and Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow",
    ICLR 2020; the sentence before the definition of its score has the sign the other way.
    """
    data = list(batches)
    weights = scored_weights(model, layers, mode)
    with _divided(model, temperature):
        g = mean_gradients(model, weights, loss, data)

        def hessian_product(batch: Any) -> tuple[Tensor | None, ...]:
            by_batch = gradients(scalar(loss, model, batch), weights, create_graph=True)
            products = [(p * g[n]).sum() for n, p in zip(g, by_batch, strict=True) if p is not None]
            along_g = torch.stack(products).sum()
            # A gradient that is constant in the weights has no Hessian.
            return gradients(along_g, weights) if along_g.requires_grad else (None,) * len(g)

        hg = mean_of(map(hessian_product, data), weights)
    return {name: hg[name].mul_(w.detach()) for name, w in weights.items()}


@contextmanager
def _divided(model: nn.Module, temperature: float) -> Iterator[None]:
    """The model's outputs over `temperature`."""
    temperature = real("temperature", temperature)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    def divide(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"grasp divides the logits by its temperature, and {type(module).__name__} returns a "
                f"{type(output).__name__}: wrap the model so that it returns logits"
            )
        return output / temperature

    handle = model.register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
