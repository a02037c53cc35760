"""Weights W = alpha * D + S of drawn shapes, and W in float64."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from dctps.offsets import build_offset
from dctps.product.weight import Weight


def parts(name: str, shape: tuple[int, ...], groups: int = 1, nnz: int = 5) -> Weight:
    offset = build_offset(name, shape, groups=groups, seed=3, layer="layer")
    size = offset.out_features * offset.in_features
    support = torch.randperm(size)[: min(nnz, size)].sort().values
    alpha = None if name == "zero" else torch.tensor([0.7])
    return Weight(torch.randn(len(support)), alpha, support, offset)


def in_double(weight: Weight) -> Tensor:
    values, alpha, support, offset = weight
    alpha = None if alpha is None else alpha.double()
    return Weight(values.double(), alpha, support, offset).to_dense()


@st.composite
def weights(draw) -> Weight:
    sizes = st.integers(1, 70)
    shape: tuple[int, ...] = (draw(sizes), draw(sizes))
    groups = 1
    if draw(st.booleans()):
        groups = draw(st.integers(1, 3))
        shape = (
            groups * draw(st.integers(1, 20)),
            draw(st.integers(1, 12)),
            *draw(st.tuples(*[st.integers(1, 3)] * 2)),
        )
    name = draw(st.sampled_from(["dct", "sdct", "hadamard", "zero"]))
    return parts(name, shape, groups, draw(st.integers(0, 40)))
