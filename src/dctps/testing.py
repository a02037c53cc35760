"""A contract test for offsets, to be run on a user's own as on the library's.

    from dctps.testing import OffsetContract

    class TestMine(OffsetContract):
        name = "mine"  # as registered

Under pytest that runs every check below on narrow, square, wide, grouped and depthwise weights.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dctps.nn import dps_linear
from dctps.offsets import Offset, build_offset
from dctps.product.rule import Backend

# (shape, groups): m < n, m = n, m > n, single, long, convolutions, grouped, depthwise, with a multiplier
Case = tuple[tuple[int, ...], int]
CASES: list[Case] = [
    ((5, 12), 1), ((8, 8), 1), ((13, 4), 1), ((1, 1), 1), ((1, 7), 1), ((7, 1), 1), ((40, 150), 1),
    ((6, 3, 5, 5), 1), ((64, 3, 3, 3), 1), ((8, 16, 1, 1), 1),
    ((8, 2, 3, 1), 2), ((60, 2, 1, 2), 3), ((20, 1, 3, 3), 20), ((40, 1, 3, 3), 20),
]  # fmt: skip


class OffsetContract:
    """What every offset promises; subclass it and set `name`."""

    name: str

    def build(self, shape: tuple[int, ...], groups: int = 1, **draws: object) -> Offset:
        """The offset under test, of a weight's shape."""
        return build_offset(self.name, shape, groups=groups, **draws)  # type: ignore[arg-type]

    def test_apply_is_the_product_with_to_dense(self) -> None:
        """D x by the fast transform equals the dense product, block by block, in float64 and float32."""
        for offset in self._offsets():
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
                x = _draws(3, 2, offset.groups * offset.in_features).to(dtype)
                expected = _blockwise(offset, x.double())
                got = offset.apply(x)
                assert got.dtype == dtype and got.shape == (3, 2, offset.out_features)
                error = (got.double() - expected).abs().max()
                assert error <= tolerance * (1 + expected.abs().max()), (offset, dtype, error)

    def test_adjoint_is_the_transpose(self) -> None:
        """The dot test: <D x, y> = <x, D^T y>."""
        for offset in self._offsets():
            x, y = _draws(4, offset.groups * offset.in_features), _draws(4, offset.out_features)
            left, right = (offset.apply(x) * y).sum(1), (x * offset.adjoint(y)).sum(1)
            scale = 1 + x.norm() * y.norm()
            assert ((left - right).abs() <= 1e-12 * scale).all(), offset

    def test_gradients_are_the_adjoint(self) -> None:
        """Through a layer's product, numeric and analytic derivatives in x and alpha agree."""
        for offset in self._offsets(CASES[:6]):
            shape = offset.shape
            support = torch.arange(0, math.prod(shape), 3)
            values, alpha = _draws(len(support)), torch.tensor([0.7], dtype=torch.float64)
            x = _draws(2, offset.in_features)
            inputs = tuple(t.requires_grad_() for t in (x, values, alpha))
            for backend in self._backends():
                product = functools.partial(_product, support=support, offset=offset, backend=backend)
                assert torch.autograd.gradcheck(product, inputs)

    def test_precisions_agree(self) -> None:
        """D in float32 is D in float64, rounded."""
        for offset in self._offsets():
            exact = offset.to_dense(dtype=torch.float64)
            assert exact.shape == offset.shape and exact.dtype == torch.float64
            rounded = offset.to_dense(dtype=torch.float32)
            assert rounded.dtype == torch.float32
            assert (rounded.double() - exact).abs().max() <= 2e-6 * (1 + exact.abs().max()), offset

    def test_norm(self) -> None:
        """The norm is the Frobenius norm of D."""
        for offset in self._offsets():
            exact = float(offset.to_dense(dtype=torch.float64).norm())
            assert math.isclose(offset.norm(), exact, rel_tol=1e-9, abs_tol=1e-12)

    def test_holds_nothing_large(self) -> None:
        """No module, no parameters; draws of O(m + n) numbers at most, also after use."""
        offset = self.build((96, 128))
        assert not isinstance(offset, nn.Module)
        offset.apply(_draws(2, 128))
        offset.adjoint(_draws(2, 96))
        tensors = [v for v in vars(offset).values() if isinstance(v, Tensor)]
        assert not any(t.requires_grad for t in tensors)
        assert offset.held_bytes() + sum(t.nbytes for t in tensors) <= 16 * (96 + 128)

    def test_is_rebuilt_from_its_spec(self) -> None:
        """Through JSON, pickling and copying it stays the same map."""
        for offset in self._offsets(seed=3, layer="features.0"):
            dense = offset.to_dense()
            again = build_offset(**json.loads(json.dumps(offset.spec)))
            for other in (again, pickle.loads(pickle.dumps(offset)), copy.deepcopy(offset)):
                assert other == offset and torch.equal(other.to_dense(), dense)

    def test_empty_batch(self) -> None:
        """No rows in, no rows out."""
        for offset in self._offsets():
            width = offset.groups * offset.in_features
            assert offset.apply(torch.zeros(0, width)).shape == (0, offset.out_features)
            assert offset.adjoint(torch.zeros(0, offset.out_features)).shape == (0, width)

    def test_usable_after_inference_mode(self) -> None:
        """Tables first made in inference mode can still be trained through."""
        for backend in self._backends():
            offset = self.build((25, 37), seed=11)
            s = torch.ones(1), torch.zeros(1, dtype=torch.int64)
            with torch.inference_mode():
                dps_linear(torch.zeros(1, 37), *s, offset, torch.ones(1), backend=backend)
            x = torch.ones(2, 37, requires_grad=True)
            dps_linear(x, *s, offset, torch.ones(1), backend=backend).sum().backward()
            assert x.grad is not None

    def _offsets(self, cases: Sequence[Case] = CASES, **draws: object) -> Iterator[Offset]:
        return (self.build(shape, groups, **draws) for shape, groups in cases)

    def _backends(self) -> list[Backend]:
        """The paths that a linear layer under this offset can take."""
        has_transform = math.isfinite(self.build((2, 2)).row_cost)
        return ["dense", "transform"] if has_transform else ["dense"]


def _product(
    x: Tensor, values: Tensor, alpha: Tensor, *, support: Tensor, offset: Offset, backend: Backend
) -> Tensor:
    return dps_linear(x, values, support, offset, alpha, backend=backend)


def _blockwise(offset: Offset, x: Tensor) -> Tensor:
    """The dense product of each group with its own inputs."""
    blocks = offset.to_dense(dtype=torch.float64).reshape(offset.groups, -1, offset.in_features)
    inputs = x.reshape(*x.shape[:-1], offset.groups, offset.in_features)
    return torch.einsum("...gn,gmn->...gm", inputs, blocks).flatten(-2)


def _draws(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)
