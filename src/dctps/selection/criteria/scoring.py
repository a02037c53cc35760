"""What criteria share: losses, modes, gradients, and a model that is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.selection.criteria.registry import Batches, Layers, Loss, Rounds

Mode = Literal["train", "eval"]
Weights = Mapping[str, nn.Parameter]


class NoData:
    """What a criterion gets for batches where there are none: an error, as soon as it looks at them."""

    def __init__(self, criterion: str) -> None:
        self._criterion = criterion

    def __iter__(self) -> Iterator[Any]:
        raise ValueError(
            f"criterion {self._criterion!r} looks at data: pass batches=[(inputs, labels), ...] or a data "
            f"loader"
        )


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of a batch `(inputs, labels)`, the default loss."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def nll_on_logits(model: nn.Module, batch: Any) -> Tensor:
    """-z_y, the mean of the labels' logits negated: what FORCE's authors score with, without the softmax.

    Reference: the published code of de Jorge et al., "Progressive Skeletonization", ICLR 2021.
    """
    inputs, labels = batch
    return F.nll_loss(model(inputs), labels)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Let a criterion do what it needs; afterwards the model is bit for bit what it was.

    Parameters may be given other data (`p.data = ...`), of another dtype too, gradients and flags; buffers
    may change in place; modes may change; random numbers may be drawn, the same ones at each call. All that
    is undone. Only buffers are copied, so a criterion must not change a parameter in place.
    """
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=gpus), torch.enable_grad():
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in gpus)):
                generator.manual_seed(0)
            copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}
            for module, name, buffer in buffers:
                module._buffers[name] = copies[id(buffer)]
            for p, *_ in parameters:
                p.grad = None
            yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for p, data, grad, flag in parameters:
            p.grad = None  # before the data: of another dtype it would not fit
            p.data = data
            p.grad = grad
            p.requires_grad_(flag)
        for module, training in modes:
            module.training = training


def set_mode(model: nn.Module, mode: Mode) -> None:
    """`"train"`: norms use each batch's own statistics, as in training; `"eval"`: their running ones.

    Dropout is off in both: it would score noise.
    """
    if mode not in ("train", "eval"):
        raise ValueError(f'mode must be "train" or "eval", got {mode!r}')
    model.train(mode == "train")
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()


def scored_weights(model: nn.Module, layers: Layers, mode: Mode) -> dict[str, nn.Parameter]:
    """The layers' weights with gradients switched on, once the model is in `mode`."""
    set_mode(model, mode)
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    for w in weights.values():
        w.requires_grad_()
    return weights


def shrinking(weights: Weights, steps: int, score: Callable[[], dict[str, Tensor]]) -> Rounds:
    """The rounds of a criterion that scores what is left of the weights; what was pruned never returns."""
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for step in range(1, steps + 1):
        kept = yield {n: s.masked_fill_(~kept[n], -torch.inf) for n, s in score().items()}, step / steps
        for name, w in weights.items():
            w.data = w.data * kept[name]


def mean_gradients(model: nn.Module, weights: Weights, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """The gradient of the loss in each weight, the mean over the batches; zero where it is not used."""
    return mean_of((gradients(scalar(loss, model, batch), weights) for batch in batches), weights)


def gradients(value: Tensor, weights: Weights, *, create_graph: bool = False) -> tuple[Tensor | None, ...]:
    """The derivatives of one number, None where it does not depend on a weight; no `.grad` is touched."""
    return torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, allow_unused=True)


def mean_of(terms: Iterable[tuple[Tensor | None, ...]], weights: Weights) -> dict[str, Tensor]:
    """The mean of gradients that come one after the other, summed in place; ValueError if there are none."""
    sums: list[Tensor | None] = [None] * len(weights)
    count = 0
    for term in terms:
        count += 1
        for i, part in enumerate(term):
            if part is not None:
                total = sums[i]
                sums[i] = part if total is None else total.add_(part)
    if not count:
        raise ValueError("the batches are empty: a criterion needs data to score with")
    return {
        name: torch.zeros_like(w, requires_grad=False) if total is None else total.div_(count)
        for (name, w), total in zip(weights.items(), sums, strict=True)
    }


def scalar(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The loss of one batch; ValueError if it is not one number."""
    value = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"loss(model, batch) must return one number as a tensor, got {found}")
    return value
