"""Rows and images of bfloat16: the results of the same numbers in float32, rounded once."""

import pytest
import torch
from torch import Tensor

import dctps.kernels.conv
import dctps.kernels.linear
from dctps.kernels import conv_backward, conv_forward, linear_backward, linear_forward, runnable_variants
from dctps.kernels.loader import function
from tests.support.drawn import Drawn
from tests.support.drawn_conv import CASES, DrawnConv

pytestmark = [
    pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled"),
    pytest.mark.parametrize("which", ["generic", "avx2", "avx512"]),
]
SHAPES = [(1, 1, 1, 1), (17, 33, 40, 90), (40, 130, 70, 5200), (200, 200, 300, 12000), (300, 60, 33, 900)]
SHAPES += [(90, 110, 9, 980), (33, 64, 4, 70), (20, 30, 32, 300), (8, 50, 17, 0)]


@pytest.fixture(autouse=True)
def only_this(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if which not in runnable_variants():
        pytest.skip(f"this processor does not run {which}")
    monkeypatch.setattr(dctps.kernels.linear, "variant", lambda: which)
    monkeypatch.setattr(dctps.kernels.conv, "function", lambda name: function(name, which))


def same(got: Tensor | None, exact: Tensor | None) -> bool:
    """Bit for bit, once `exact` is rounded to the dtype that `got` has."""
    if got is None or exact is None:
        return got is exact
    return got.stride() == exact.stride() and torch.equal(got, exact.to(got.dtype))


@pytest.mark.parametrize("offset", ["zero", "dct", "sdct", "hadamard"])
@pytest.mark.parametrize(("m", "n", "batch", "nnz"), SHAPES)
def test_a_linear_layer(which: str, offset: str, m: int, n: int, batch: int, nnz: int) -> None:
    d = Drawn.draw(offset, m, n, batch, nnz)
    x, g = d.x.bfloat16(), d.g.bfloat16()
    parts = d.values, d.support, d.alpha
    y = linear_forward(x, *parts, d.bias, d.form, m)
    assert y.dtype == torch.bfloat16
    assert same(y, linear_forward(x.float(), *parts, d.bias, d.form, m))
    needs = (True,) * 4
    made = linear_backward(g, x, *parts, d.form, needs)
    exact = linear_backward(g.float(), x.float(), *parts, d.form, needs)
    assert all(map(same, made, exact))
    assert [t.dtype for t in made if t is not None][:2] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_convolution(which: str, case: int, last: bool) -> None:
    d = DrawnConv.draw(case, last)
    x, g = d.x.bfloat16(), d.g.bfloat16()
    parts, filters = (d.values, d.support, d.alpha), d.offset.filters()
    needs = True, True, d.alpha is not None
    for cache in (3_000, 260_000):
        y = conv_forward(x, *parts, filters, d.window, cache=cache)
        assert y.dtype == torch.bfloat16
        assert same(y, conv_forward(x.float(), *parts, filters, d.window, cache=cache))
        made = conv_backward(g, x, *parts, filters, d.window, needs, cache=cache)
        exact = conv_backward(g.float(), x.float(), *parts, filters, d.window, needs, cache=cache)
        assert all(map(same, made, exact))


@pytest.mark.parametrize("value", [1.0, 1.0 / 3.0, 3e-39])
def test_every_bfloat16_is_read_and_rounded_as_torch_does(which: str, value: float) -> None:
    """S = value * identity: zeros of both signs, subnormals, ties, infinities and nan go through."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = numbers.reshape(-1, 16)
    values, support = torch.full((16,), value), torch.arange(16) * 17
    form = Drawn.draw("zero", 16, 16, 1, 1).form
    y = linear_forward(x, values, support, None, None, form, 16)
    expected = (x.float() * value + 0.0).bfloat16()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_dtypes_that_do_not_agree_are_refused(which: str) -> None:
    d = Drawn.draw("dct", 5, 6, 3, 4)
    with pytest.raises(ValueError, match="float32"):
        linear_backward(d.g, d.x.bfloat16(), d.values, d.support, d.alpha, d.form, (True,) * 4)
    with pytest.raises(TypeError, match="float16"):
        linear_forward(d.x.half(), d.values, d.support, d.alpha, d.bias, d.form, 5)
    c = DrawnConv.draw(3, True)
    parts = c.values, c.support, c.alpha, c.offset.filters(), c.window
    with pytest.raises(TypeError, match="float32"):
        conv_backward(c.g, c.x.bfloat16(), *parts, (True,) * 3)
