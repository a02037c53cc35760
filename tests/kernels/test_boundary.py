"""What crosses into C: layouts on which both sides agree, tensors that are what C takes them for."""

import ctypes

import pytest
import torch

from dctps.kernels import (
    SupportError,
    conv_forward,
    depthwise_forward,
    linear_backward,
    linear_forward,
    loader,
    runnable_variants,
)
from dctps.kernels.boundary import address
from dctps.kernels.layouts import CONV, LINEAR, check_layouts
from dctps.kernels.loader import function
from dctps.offsets import Offset, build_offset
from tests.support.drawn import Drawn
from tests.support.drawn_conv import DEPTHWISE, DrawnConv, drawn_depthwise
from tests.support.hostile import ENTRIES, REFUSED, bad_calls

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")


def exported() -> str:
    library = loader._library()
    assert library is not None
    library.dctps_layouts.restype = ctypes.c_char_p
    return str(library.dctps_layouts().decode())


def test_the_library_describes_every_layout_that_python_has() -> None:
    names = {line.split()[0] for line in exported().splitlines()}
    assert names == {
        *("LINEAR", "CONV", "DEPTHWISE", "WEIGHT", "NORM", "STACK", "STACK_OPERATION", "STACK_LAYER"),
        *("Failure", "Mix", "Transform", "Kind", "CHUNK", "MOST_OPERATIONS"),
    }
    check_layouts(exported())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch m n nnz", "batch m n threads nnz"),  # a field inserted, or two exchanged
        (" grad_bias", ""),
        ("kernel[2]", "kernel[3]"),
        ("MIX_PLAIN MIX_PRODUCT", "MIX_PRODUCT MIX_PLAIN"),
        ("CHUNK 64", "CHUNK 32"),
        ("WEIGHT outputs", "WEIGHED outputs"),
    ],
)
def test_a_layout_that_the_two_sides_disagree_about_is_an_error(old: str, new: str) -> None:
    assert old in exported()
    with pytest.raises(RuntimeError, match="disagree"):
        check_layouts(exported().replace(old, new))


def test_the_library_is_not_loaded_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LINEAR, "names", [*LINEAR.names[1:], "more"])
    with pytest.raises(RuntimeError, match="disagree about LINEAR"):
        loader._library.__wrapped__()


def test_a_call_of_too_many_or_too_few_numbers_is_not_packed() -> None:
    for layout in (LINEAR, CONV):
        with pytest.raises(Exception, match="expected"):
            layout.pack(*range(len(layout.names) - 1))


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_calls_are_refused_and_right_ones_taken(entry: str) -> None:
    """A few of those that run under the sanitizer."""
    for (call, arguments), what in bad_calls(entry, 150):
        with pytest.raises(REFUSED):
            call(**arguments)
            pytest.fail(f"took {what} = {arguments[what]}")


@pytest.mark.parametrize("batch", [3, 40, 300])
@pytest.mark.parametrize("bad", [[5, 5], [6, 5], [4, 3, 2], [0, 1, 1]])
def test_an_order_within_one_row_counts_too(batch: int, bad: list[int]) -> None:
    d = Drawn.draw("dct", 48, 40, batch, len(bad))
    d.support = torch.tensor(bad)
    rest = d.values, d.support, d.alpha
    with pytest.raises(SupportError, match="each of them once"):
        linear_forward(d.x, *rest, d.bias, d.form, 48)
    with pytest.raises(SupportError, match="each of them once"):
        linear_backward(d.g, d.x, *rest, d.form, (True,) * 4)


def negative_view(t: torch.Tensor) -> torch.Tensor:
    """The same numbers as a view of which memory holds the negative ones."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


def test_views_of_negative_numbers_are_read_as_what_they_are() -> None:
    d = Drawn.draw("sdct", 30, 1, 20, 10)
    y = linear_forward(d.x, d.values, d.support, d.alpha, d.bias, d.form, 30)
    views = (negative_view(t) for t in (d.x, d.values))
    x, values = views
    assert torch.equal(linear_forward(x, values, d.support, d.alpha, negative_view(d.bias), d.form, 30), y)
    c = DrawnConv.draw(3, True)
    rest = c.values, c.support, c.alpha, c.offset.filters(), c.window
    assert torch.allclose(conv_forward(negative_view(c.x), *rest), conv_forward(c.x, *rest), atol=1e-5)
    window, x, _, weight, bias = drawn_depthwise(*DEPTHWISE[1])
    got = depthwise_forward(negative_view(x), negative_view(weight), window, negative_view(bias))
    assert torch.equal(got, depthwise_forward(x, weight, window, bias))


def test_a_bias_or_alpha_of_any_stride_is_read_as_what_it_is() -> None:
    c = DrawnConv.draw(4, False)
    bias = torch.randn(c.window.shape[0], 2)
    rest = c.x, c.values, c.support, c.alpha, c.offset.filters(), c.window
    assert torch.equal(conv_forward(*rest, bias[:, 1]), conv_forward(*rest, bias[:, 1].clone()))
    d = Drawn.draw("dct", 30, 20, 20, 10)
    bias, values = torch.randn(30, 3), torch.randn(10, 2)
    call = d.support, d.alpha
    strided = linear_forward(d.x, values[:, 0], *call, bias[:, 2], d.form, 30)
    assert torch.equal(
        strided, linear_forward(d.x, values[:, 0].clone(), *call, bias[:, 2].clone(), d.form, 30)
    )


def test_an_offset_of_ones_own_that_ignores_the_dtype_is_refused() -> None:
    class Doubles(Offset):
        name = "doubles"

        def to_dense(
            self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
        ) -> torch.Tensor:
            return torch.ones(self.shape, dtype=torch.float64)

    c = DrawnConv.draw(2, False)  # depthwise
    offset = Doubles(c.window.shape, groups=c.window.groups)
    with pytest.raises(TypeError, match="float64"):
        conv_forward(c.x, c.values, c.support, c.alpha, offset.filters(), c.window)


def test_the_errors_name_what_is_wrong() -> None:
    kept: list[torch.Tensor] = []
    with pytest.raises(
        TypeError, match=r"the bias: .* 5 numbers of torch.float32 on the CPU, got \(5,\) of torch.float64"
    ):
        address(torch.zeros(5, dtype=torch.float64), 5, "the bias", kept)
    with pytest.raises(ValueError, match="alpha"):
        address(torch.zeros(2), 1, "alpha", kept)
    assert function("linear_forward") is not None and build_offset("dct", (3, 3)).name == "dct"
