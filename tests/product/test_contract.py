"""What every path promises, against W by `to_dense()` in float64. A new path is one more row of `PATHS`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import dctps.product.compiled
import dctps.product.function
from dctps.kernels import variant
from dctps.offsets import build_offset
from dctps.product.function import is_ordinary, product, spec_of
from dctps.product.geometry import ROWS, ConvGeometry, Geometry, conv_geometry
from dctps.product.path import Call, Path
from dctps.product.paths import PATHS
from dctps.product.paths.tiles import TILES
from dctps.product.weight import Weight

LAST, FIRST = torch.channels_last, torch.contiguous_format
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A layer and its input's shape; a convolution has two image axes."""

    offset: str
    shape: tuple[int, ...]
    x: tuple[int, ...]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    density: float = 0.2

    @property
    def geometry(self) -> Geometry:
        if len(self.shape) == 2:
            return ROWS
        return conv_geometry(self.shape, self.stride, self.padding, self.dilation, self.groups)


CASES = [
    Case("dct", (24, 32), (5, 32)),
    Case("sdct", (70, 32), (33, 32)),
    Case("hadamard", (9, 30), (1, 30)),
    Case("zero", (24, 10), (17, 10), density=0.5),
    Case("gaussian", (7, 12), (4, 12), density=0.0),
    Case("dct", (12, 5), (0, 5)),
    Case("dct", (16, 8, 3, 3), (2, 8, 9, 7), padding=(1, 1)),
    Case("sdct", (8, 6, 3, 2), (3, 6, 10, 9), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    Case("zero", (6, 2, 3, 3), (2, 4, 6, 6), groups=2),
    Case("dct", (8, 3, 2, 2), (0, 3, 6, 6)),
    Case("dct", (70, 64, 3, 3), (2, 64, 2, 2), padding=(1, 1), density=0.01),
    Case("sdct", (64, 64, 3, 3), (3, 64, 2, 3), stride=(2, 2), padding=(1, 1), density=0.01),
    Case("dct", (18, 1, 3, 3), (2, 18, 7, 8), padding=(1, 1), groups=18),
    Case("gaussian", (18, 1, 5, 4), (2, 18, 9, 9), stride=(2, 2), groups=18, density=0.0),
    Case("sdct", (24, 16, 1, 1), (2, 16, 5, 6)),
    Case("hadamard", (12, 20, 1, 1), (2, 20, 5, 5), stride=(2, 2)),
    Case("dct", (20, 12, 1, 1), (2, 12, 4, 4), padding=(1, 1)),
]


@dataclass
class Drawn:
    x: Tensor
    weight: Weight
    bias: Tensor

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, layout: torch.memory_format) -> Drawn:
        generator = torch.Generator().manual_seed(0)
        offset = build_offset(case.offset, case.shape, groups=case.groups, seed=2, layer="layer")
        size = offset.out_features * offset.in_features
        support = torch.randperm(size, generator=generator)[: round(case.density * size)].sort().values
        values = torch.randn(len(support), generator=generator)
        alpha = None if case.offset == "zero" else torch.tensor([0.7])
        x = torch.randn(case.x, generator=generator)
        x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
        bias = torch.randn(case.shape[0], generator=generator)
        values, x, bias = (t.to(dtype) for t in (values, x, bias))
        return cls(x, Weight(values, None if alpha is None else alpha.to(dtype), support, offset), bias)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight.values, self.weight.alpha, self.bias) if t is not None]

    def in_double(self) -> Drawn:
        """The same numbers in float64, of their own."""
        values, alpha, support, offset = self.weight
        x, values, bias = (t.detach().double().requires_grad_() for t in (self.x, values, self.bias))
        alpha = None if alpha is None else alpha.detach().double().requires_grad_()
        return Drawn(x, Weight(values, alpha, support, offset), bias)

    def exact(self, case: Case) -> Tensor:
        """The product with W as a dense tensor."""
        values, alpha, support, offset = self.weight
        s = torch.zeros(offset.out_features * offset.in_features, dtype=torch.float64)
        w = s.index_put((support,), values).reshape(offset.shape)
        if alpha is not None:
            w = w + alpha * offset.to_dense(dtype=torch.float64)
        if len(case.shape) == 2:
            return F.linear(self.x, w, self.bias)
        return F.conv2d(self.x, w, self.bias, case.stride, case.padding, case.dilation, case.groups)


def takes(path: Path, case: Case, drawn: Drawn) -> bool:
    native = drawn.x.dtype != torch.float64
    nnz = drawn.weight.values.numel()
    call = Call.of(drawn.x, nnz, drawn.weight.offset, case.geometry, native=native, training=True)
    return not path.refusal(call)


@pytest.fixture(params=PATHS, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each path, which every product then takes."""

    def choose(x: Tensor, weight: Weight, *_: object) -> tuple[Path, bool]:
        return request.param, is_ordinary(x, weight.values)

    monkeypatch.setattr(dctps.product.function, "choose", choose)
    monkeypatch.setattr(dctps.product.compiled, "choose", choose)
    return request.param  # type: ignore[no-any-return]


def cases_of(path: Path, *dtypes: torch.dtype) -> list[tuple[Case, Drawn, torch.dtype]]:
    found = []
    for case, dtype, layout in itertools.product(CASES, dtypes, (FIRST, LAST)):
        if layout is FIRST or len(case.shape) == 4:
            drawn = Drawn.of(case, dtype, layout)
            if takes(path, case, drawn):
                found.append((case, drawn, dtype))
    if not found:
        pytest.skip("the native kernels were not compiled" if variant() == "off" else "of no such dtype")
    return found


def close(got: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    """Up to the rounding of vectors of these lengths."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    scale = 1 + float(exact.detach().abs().max()) if exact.numel() else 1.0
    return got.shape == exact.shape and bool(((got.double() - exact).abs() <= tolerance * scale).all())


def test_every_path_has_a_case() -> None:
    if variant() != "off":
        for path in PATHS:
            if path is TILES and not torch.cuda.is_available():
                continue  # `tests/gpu/interpreted.py` has its cases
            assert sum(takes(path, case, Drawn.of(case, torch.float32, LAST)) for case in CASES) >= 2, (
                path.name
            )


def test_results_and_first_derivatives(path: Path) -> None:
    for case, drawn, dtype in cases_of(path, torch.float32, torch.bfloat16, torch.float64):
        choices = itertools.product((True, False), repeat=4) if dtype == torch.float32 else [(True,) * 4]
        for wanted in choices:
            double = drawn.in_double()
            leaves = dict(zip(("x", "values", "alpha", "bias"), wanted, strict=True))
            for one in (drawn, double):
                one.x.requires_grad_(leaves["x"])
                one.weight.values.requires_grad_(leaves["values"])
                one.bias.requires_grad_(leaves["bias"])
                if one.weight.alpha is not None:
                    one.weight.alpha.requires_grad_(leaves["alpha"])
            y = product(drawn.x, drawn.weight, case.geometry, "auto", drawn.bias)
            expected = double.exact(case)
            assert y.dtype == dtype and close(y, expected, dtype), (path.name, case, dtype)
            by = [t for t in drawn.leaves if t.requires_grad]
            if not by:
                assert not y.requires_grad
                continue
            g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            got = torch.autograd.grad(y, by, g)
            exact = torch.autograd.grad(expected, [t for t in double.leaves if t.requires_grad], g.double())
            for t, a, b in zip(by, got, exact, strict=True):
                assert a.dtype == t.dtype and close(a, b, dtype), (path.name, case, dtype, wanted)


def test_second_derivatives_and_tangents(path: Path) -> None:
    dtype = torch.float64 if path is path.twin else torch.float32
    for case, drawn, _ in cases_of(path, dtype):
        double = drawn.in_double()
        for t in drawn.leaves:
            t.requires_grad_()
        seconds = []
        for one, y in (
            (drawn, product(drawn.x, drawn.weight, case.geometry, "auto", drawn.bias)),
            (double, double.exact(case)),
        ):
            first = torch.autograd.grad(y.square().sum(), one.leaves, create_graph=True)
            seconds.append([*first, *torch.autograd.grad(sum(t.square().sum() for t in first), one.leaves)])
        for got, exact in zip(*seconds, strict=True):
            assert close(got, exact, torch.float32), (path.name, case)

        with forward_ad.dual_level():
            tangents = [torch.randn_like(t) for t in drawn.leaves]
            duals = [forward_ad.make_dual(t, dot) for t, dot in zip(drawn.leaves, tangents, strict=True)]
            x, values, *alpha, bias = duals
            weight = drawn.weight._replace(values=values, alpha=alpha[0] if alpha else None)
            dot_y = forward_ad.unpack_dual(product(x, weight, case.geometry, "auto", bias)).tangent
        exact_y = torch.func.jvp(
            lambda *leaves: replaced(double, leaves).exact(case),
            tuple(t.detach() for t in double.leaves),
            tuple(dot.double() for dot in tangents),
        )[1]
        assert close(dot_y, exact_y, torch.float32), (path.name, case)


def replaced(drawn: Drawn, leaves: tuple[Tensor, ...]) -> Drawn:
    x, values, *alpha, bias = leaves
    return Drawn(x, drawn.weight._replace(values=values, alpha=alpha[0] if alpha else None), bias)


def test_inputs_of_any_strides(path: Path) -> None:
    for case, drawn, dtype in cases_of(path, torch.float32):
        strided = torch.stack([drawn.x, drawn.x + 1], -1)[..., 0]
        assert strided.stride() != drawn.x.stride() or not strided.numel()
        if takes(path, case, Drawn(strided, drawn.weight, drawn.bias)):
            y = product(strided, drawn.weight, case.geometry, "auto", drawn.bias)
            assert close(y, drawn.in_double().exact(case), dtype), (path.name, case)


def test_operators_say_the_strides_that_eager_results_have(path: Path) -> None:
    for case, drawn, dtype in cases_of(path, torch.float32, torch.bfloat16):
        values, alpha, support, offset = drawn.weight
        window = []
        if isinstance(case.geometry, ConvGeometry):
            window = [*case.geometry.stride, *case.geometry.padding, *case.geometry.dilation]
        rest = spec_of(offset), window, "auto", True
        eager = product(drawn.x, drawn.weight, case.geometry, "auto")
        y = torch.ops.dctps.product(drawn.x, values, alpha, support, *rest)
        g, needs = torch.randn_like(y), (True, True, alpha is not None)
        grads = torch.ops.dctps.product_backward(g, drawn.x, values, alpha, support, *rest, *needs)
        with FakeTensorMode() as mode:
            fakes = [None if t is None else mode.from_tensor(t) for t in (g, drawn.x, values, alpha, support)]
            fake_y = torch.ops.dctps.product(*fakes[1:], *rest)
            fake_grads = torch.ops.dctps.product_backward(*fakes, *rest, *needs)
        assert torch.equal(eager, y) and eager.stride() == y.stride(), (path.name, case, dtype)
        for real, fake in zip((y, *grads), (fake_y, *fake_grads), strict=True):
            assert (real.shape, real.dtype) == (fake.shape, fake.dtype), (path.name, case)
            assert real.stride() == fake.stride() or not real.numel(), (path.name, case, real.shape)
