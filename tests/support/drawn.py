"""Layers drawn for the kernel tests, and what they compute in float64 on dense matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels import NativeOffset, linear_backward, linear_forward
from dctps.offsets import build_offset
from dctps.product.paths.rows import native_offset
from dctps.sparse import random_support


@dataclass
class Drawn:
    x: Tensor
    g: Tensor
    values: Tensor
    support: Tensor
    alpha: Tensor | None
    bias: Tensor
    form: NativeOffset
    dense: Tensor  # D, float64

    @classmethod
    def draw(cls, offset: str, m: int, n: int, batch: int, nnz: int, seed: int = 0) -> Drawn:
        generator = torch.Generator().manual_seed(seed)
        operator = build_offset(offset, (m, n), seed=seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return cls(
            x=draw(batch, n),
            g=draw(batch, m),
            values=draw(nnz),
            support=random_support(m * n, nnz, seed=seed),
            alpha=None if offset == "zero" else draw(1),
            bias=draw(m),
            form=native_offset(operator),
            dense=operator.to_dense(dtype=torch.float64),
        )

    def made(self, needs: tuple[bool, ...] = 4 * (True,)) -> list[Tensor | None]:
        """What native code makes of it: y and, where needed, its derivatives in x, values, alpha and bias."""
        rest = self.values, self.support, self.alpha
        y = linear_forward(self.x, *rest, self.bias, self.form, self.g.shape[1])
        return [y, *linear_backward(self.g, self.x, *rest, self.form, needs)]

    def weight(self) -> Tensor:
        """Alpha D + S, float64."""
        s = torch.zeros(self.dense.numel(), dtype=torch.float64)
        s[self.support] = self.values.double()
        alpha = 0.0 if self.alpha is None else self.alpha.double()
        return alpha * self.dense + s.reshape(self.dense.shape)

    def expected(self) -> list[tuple[Tensor, Tensor]]:
        """y and the derivatives in x, values, alpha and bias; each with the root of its terms' squares."""
        x, g, w = self.x.double(), self.g.double(), self.weight()
        by_w, by_w2 = g.T @ x, g.square().T @ x.square()
        # A transform adds its whole input into each output: its error is measured against the vector's norm.
        norm = w.norm() / max(min(w.shape), 1) ** 0.5
        return [
            (x @ w.T + self.bias, norm * x.norm(dim=1, keepdim=True) + self.bias.abs()),
            (g @ w, norm * g.norm(dim=1, keepdim=True)),
            (by_w.flatten()[self.support], by_w2.flatten()[self.support].sqrt()),
            ((by_w * self.dense).sum().reshape(1), (g @ self.dense).norm() * x.norm()),
            (g.sum(0), g.norm(dim=0)),
        ]
