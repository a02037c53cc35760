"""Convolutions for the tests of the native kernels: every kind of mixing, stride, group and layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.kernels import Window, conv_backward, conv_forward, conv_weight, conv_weight_backward
from dctps.offsets import Offset, build_offset

# offset, weight's shape, groups, stride, padding, dilation, batch, image, nonzeros
CASES = (
    ("zero", (6, 2, 3, 3), 3, (1, 2), (1, 1), (1, 1), 2, (7, 9), 20),
    ("zero", (5, 4, 1, 1), 1, (1, 1), (0, 0), (1, 1), 1, (1, 1), 3),
    ("dct", (7, 1, 3, 2), 7, (2, 2), (1, 0), (1, 1), 3, (9, 8), 11),
    ("dct", (40, 33, 3, 3), 1, (1, 1), (1, 1), (1, 1), 5, (12, 17), 300),
    ("dct", (9, 3, 3, 3), 1, (1, 1), (1, 1), (2, 1), 2, (8, 40), 0),
    ("dct", (64, 64, 3, 3), 1, (2, 2), (1, 1), (1, 1), 3, (6, 6), 90),
    ("dct", (12, 40, 1, 1), 1, (2, 1), (1, 0), (1, 1), 2, (5, 5), 30),
    ("sdct", (50, 5, 3, 3), 1, (1, 1), (2, 1), (1, 1), 4, (10, 7), 200),
    ("sdct", (20, 17, 5, 1), 1, (3, 1), (2, 0), (1, 1), 2, (15, 6), 60),
    ("sdct", (8, 1, 3, 3), 4, (1, 1), (1, 1), (1, 1), 2, (30, 70), 9),
    ("sdct", (96, 48, 3, 3), 1, (1, 1), (1, 1), (1, 1), 9, (4, 4), 2000),
)

# batch, channels, image, kernel, stride, padding, dilation
DEPTHWISE = (
    (1, 1, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    (3, 17, (9, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    (35, 16, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 40, (15, 11), (5, 7), (1, 2), (2, 3), (1, 1)),
    (2, 7, (13, 30), (2, 3), (3, 3), (4, 0), (2, 3)),
    (5, 50, (4, 4), (1, 1), (4, 3), (0, 2), (1, 1)),
    (33, 96, (36, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
)


def drawn_depthwise(
    batch: int,
    channels: int,
    image: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Window, Tensor, Tensor, Tensor, Tensor]:
    """A window, x and g in channels-last order, weight and bias of one of `DEPTHWISE`."""
    window = Window((channels, 1, *kernel), stride, padding, dilation, channels)
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, channels, *image, generator=generator).to(memory_format=torch.channels_last)
    g = torch.randn(window.outputs(x), generator=generator).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(window.shape, generator=generator), torch.randn(channels, generator=generator)
    return window, x, g, weight, bias


@dataclass(frozen=True)
class DrawnConv:
    """One of `CASES` with its tensors; `last`: x and g in channels-last order."""

    offset: Offset
    window: Window
    x: Tensor
    g: Tensor
    values: Tensor
    support: Tensor
    alpha: Tensor | None

    @classmethod
    def draw(cls, case: int, last: bool) -> DrawnConv:
        name, shape, groups, stride, padding, dilation, batch, image, nnz = CASES[case]
        offset, window = (
            build_offset(name, shape, groups=groups),
            Window(shape, stride, padding, dilation, groups),
        )
        generator = torch.Generator().manual_seed(case)
        x = torch.randn(batch, shape[1] * groups, *image, generator=generator)
        g = torch.randn(window.outputs(x), generator=generator)
        if last:
            x, g = (t.to(memory_format=torch.channels_last) for t in (x, g))
        size = offset.out_features * offset.in_features
        support = torch.randperm(size, generator=generator)[:nnz].sort().values
        alpha = None if name == "zero" else torch.tensor([0.7])
        return cls(offset, window, x, g, torch.randn(nnz, generator=generator), support, alpha)

    def made(self, cache: int) -> list[Tensor]:
        """Everything that native code makes of it: y, its gradients, and where it can W and its gradients."""
        filters, parts = self.offset.filters(), (self.values, self.support, self.alpha)
        needs = (True, True, self.alpha is not None)
        made = [conv_forward(self.x, *parts, filters, self.window, cache=cache)]
        made += [
            t
            for t in conv_backward(self.g, self.x, *parts, filters, self.window, needs, cache=cache)
            if t is not None
        ]
        if self.window.groups == 1 or self.window.shape[1] == 1:
            form = self.offset.weight_filters()
            for layout in (torch.contiguous_format, torch.channels_last):
                weight = conv_weight(*parts, form, self.window.shape, layout)
                rest = {"needs_values": True, "needs_alpha": needs[2]}
                made += [
                    weight,
                    *(t for t in conv_weight_backward(weight, *parts, form, **rest) if t is not None),
                ]
        return made

    def expected(self) -> list[Tensor]:
        """The same by torch, in float64."""
        leaves = [self.x.double(), self.values.double(), None if self.alpha is None else self.alpha.double()]
        x, values, alpha = (t if t is None else t.requires_grad_() for t in leaves)
        dense = self.offset.to_dense(dtype=torch.float64)
        weight = (
            torch.zeros(dense.numel(), dtype=torch.float64)
            .index_put((self.support,), values)
            .reshape(dense.shape)
        )
        weight = weight if alpha is None else weight + alpha * dense
        w = self.window
        y = F.conv2d(x, weight, None, w.stride, w.padding, w.dilation, w.groups)
        wanted = [t for t in (x, values, alpha) if t is not None]
        made = [y.detach(), *torch.autograd.grad(y, wanted, self.g.double(), retain_graph=True)]
        if w.groups == 1 or w.shape[1] == 1:
            by = torch.autograd.grad(weight, wanted[1:], weight.detach())
            made += 2 * [weight.detach(), *by]
        return made
