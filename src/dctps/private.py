"""Training under differential privacy, by Opacus: per-sample gradients in O(nnz), and each kind's noise.

With x_s the input of sample s, g_s the gradient in its output, and t positions (pixels, or of a sequence):

    values    d_k[s] = sum_t g_s[t, row_k] x_s[t, col_k]
    alpha     d[s]   = <g_s, D x_s>
    bias      d[s]   = sum_t g_s[t]

Opacus is imported when one of the functions is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dctps.networks.surgery import named_modules
from dctps.nn import DpSLayer, DpSLinear
from dctps.nn.conv import DpSConvolution
from dctps.product.function import dps_conv2d, dps_linear
from dctps.reporting import trained_by_kind
from dctps.tables import aligned

_BATCHED = 16  # a batched matrix product does so many multiplications in the time of one gathered one


def per_sample(model: nn.Module, *, batch_first: bool = True, loss_reduction: str = "mean") -> Any:
    """The network, wrapped so that a backward pass leaves each sample's gradients in `.grad_sample`.

    Give the result to `PrivacyEngine().make_private(module=...)`. Opacus refuses any layer with buffers, as
    they might carry data from one sample to another; those of a DpS layer say which weights train, and no
    sample changes them.

    Args:
        model: converted or not, in training mode; its parameters stay the same objects.
        batch_first: whether the batch is the first axis of every layer's input, not the second.
        loss_reduction: `"mean"` or `"sum"`, as the loss does over the batch.

    Returns:
        an `opacus.GradSampleModule`.

    Raises:
        ValueError: a batch norm, which mixes the samples, or another module with parameters beside buffers.
        ImportError: there is no Opacus: install `dctps[private]`.
    """
    from opacus.grad_sample import GradSampleModule, register_grad_sampler  # noqa: PLC0415 (an extra)

    for name, module in named_modules(model):
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) mixes the samples of a batch, so that none has a "
                f"gradient of its own: use GroupNorm, or no norm"
            )
        if isinstance(module, DpSLayer):
            register_grad_sampler(type(module))(sample_gradients)
        elif (
            any(p.requires_grad for p in module.parameters(recurse=False))
            and next(module.buffers(), None) is not None
        ):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has parameters of its own beside "
                f"buffers, its own or those of layers in it, which Opacus does not take: freeze them, or put "
                f"them in a module alone"
            )
    return GradSampleModule(model, strict=False, batch_first=batch_first, loss_reduction=loss_reduction)


@torch.no_grad()
def sample_gradients(layer: DpSLayer, activations: Sequence[Tensor], g: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradient of each sample alone, in the parameters of a layer that train; a grad sampler of Opacus's.

    Args:
        layer: any DpS layer.
        activations: its input (n, ...) as the only one.
        g: (n, ...), the gradient of each sample's loss in the layer's output.

    Returns:
        parameter -> (n, *its shape), of g's dtype.
    """
    x = activations[0].to(g.dtype)
    found: dict[nn.Parameter, Tensor] = {}
    if layer.alpha is not None and layer.alpha.requires_grad:
        found[layer.alpha] = (
            (g.double() * _offset_output(layer, x)).flatten(1).sum(1, keepdim=True).to(g.dtype)
        )
    if isinstance(layer, DpSLinear):  # positions last, as pixels are
        g, x = (t.flatten(1, -2).transpose(1, 2) if t.dim() > 2 else t.unsqueeze(2) for t in (g, x))
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = g.flatten(2).sum(2)
    if layer.values.requires_grad:
        by_tap = _by_linear if isinstance(layer, DpSLinear) else _by_convolution
        found[layer.values] = by_tap(layer, g, x)
    return found


def _offset_output(layer: DpSLayer, x: Tensor) -> Tensor:
    """D x, by the path that a layer without values takes."""
    none, one = x.new_zeros(0), x.new_ones(1)
    rest: tuple[Any, ...] = none, layer.support[:0], layer.offset, one
    if not isinstance(layer, DpSConvolution):
        return dps_linear(x, *rest)
    padded = _padded(layer, x)
    window = {key: (1, 1)[len(getattr(layer, key)) :] + getattr(layer, key) for key in ("stride", "dilation")}
    y = dps_conv2d(padded, *rest, **window)
    return y if x.dim() == 4 else y.squeeze(2)


def _padded(layer: DpSConvolution, x: Tensor) -> Tensor:
    """The images with all of the padding; lines as images of one row."""
    padded, left = layer.padded(x)
    padded = F.pad(padded, [side for size in reversed(left) for side in (size, size)])
    return padded if x.dim() == 4 else padded.unsqueeze(2)


def _by_linear(layer: DpSLayer, g: Tensor, x: Tensor) -> Tensor:
    rows, columns = layer.support // x.shape[1], layer.support % x.shape[1]
    return _products(g, x, rows, columns)


def _by_convolution(layer: DpSLayer, g: Tensor, x: Tensor) -> Tensor:
    """One tap of the kernel after the other: the pixels that it meets are a strided view of the images."""
    assert isinstance(layer, DpSConvolution)
    outputs, inputs, height, width = layer.offset.shape
    images, g = _padded(layer, x), g if x.dim() == 4 else g.unsqueeze(2)
    row_by, column_by = (1, 1)[len(layer.stride) :] + layer.stride
    row_apart, column_apart = (1, 1)[len(layer.dilation) :] + layer.dilation
    taps, channels = layer.support % (height * width), layer.support // (height * width)
    rows = channels // inputs
    columns = channels % inputs + rows // (outputs // layer.groups) * inputs
    found = g.new_zeros(len(g), layer.nnz)
    for tap in taps.unique().tolist():
        at = (taps == tap).nonzero().squeeze(1)
        top, left = tap // width * row_apart, tap % width * column_apart
        met = images[:, :, top:, left:][:, :, ::row_by, ::column_by][:, :, : g.shape[2], : g.shape[3]]
        found[:, at] = _products(g.flatten(2), met.flatten(2), rows[at], columns[at])
    return found


def _products(g: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """sum_t g[:, rows, t] x[:, columns, t]: (n, m, t) and (n, c, t) -> (n, k)."""
    if _BATCHED * len(rows) > g.shape[1] * x.shape[1] and g.shape[2] > 1:
        return torch.bmm(g, x.transpose(1, 2))[:, rows, columns]
    return (g[:, rows] * x[:, columns]).sum(2)


@dataclass(frozen=True)
class NoiseReport:
    """The noise of one step of a private optimizer.

    Attributes:
        per_number: standard deviation in each number of the gradient, sigma C / B.
        numbers: that train, by kind.
        norms: expected norm of the noise in all numbers of a kind, per_number * sqrt(numbers).
        clipping: C, which the norm of each sample's gradient, all kinds together, is clipped to.
    """

    per_number: float
    numbers: dict[str, int]
    norms: dict[str, float]
    clipping: float

    def __str__(self) -> str:
        table = [("kind", "numbers", "noise", "to the largest gradient")]
        total = sum(self.numbers.values())
        rows = [*self.numbers.items(), ("all", total)]
        for kind, count in rows:
            norm = self.per_number * math.sqrt(count)
            table.append((kind, f"{count:,}", f"{norm:.3g}", f"{norm / self.clipping:.3g}"))
        return "\n".join(aligned(table, right={1, 2, 3}))


def noise_report(model: nn.Module, optimizer: Any) -> NoiseReport:
    """What the noise of a step is in each kind of trained number.

    It is the same in each number, sigma C / B, with B the expected size of a batch: a kind gets the more of
    it the more numbers it has, while the mean gradient's norm is at most C.

    Args:
        model: the network, wrapped or not.
        optimizer: an `opacus.optimizers.DPOptimizer`, with one norm C for all.

    Raises:
        ValueError: an optimizer that is not private.
    """
    if not hasattr(optimizer, "noise_multiplier"):
        raise ValueError(f"{type(optimizer).__name__} adds no noise: give the one that make_private returned")
    clipping = float(optimizer.max_grad_norm)
    per_number = float(optimizer.noise_multiplier) * clipping / float(optimizer.expected_batch_size)
    numbers = {kind: sum(p.numel() for p in found) for kind, found in trained_by_kind(model).items()}
    norms = {kind: per_number * math.sqrt(count) for kind, count in numbers.items()}
    return NoiseReport(per_number, numbers, norms, clipping)
