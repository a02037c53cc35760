"""The native depthwise convolution in every variant that this processor runs, against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dctps.kernels.depthwise
from dctps.kernels import Window, depthwise_backward, depthwise_forward, runnable_variants
from dctps.kernels.loader import function
from tests.support.drawn_conv import DEPTHWISE, drawn_depthwise

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")

Pair = tuple[int, int]


@pytest.fixture(params=runnable_variants())
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dctps.kernels.depthwise, "function", lambda name: function(name, request.param))
    return request.param


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, Pair]:
    """A convolution of a drawn number of channels, and the size of an image that it takes."""
    channels = draw(st.sampled_from([1, 2, 7, 8, 15, 16, 17, 33, 50]))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    least = (
        max(1, by * (taps - 1) + 1 - 2 * pad) for taps, pad, by in zip(kernel, padding, dilation, strict=True)
    )
    image = draw(st.tuples(*(st.integers(size, size + 13) for size in least)))
    return Window((channels, 1, *kernel), stride, padding, dilation, channels), image


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=windows(),
    batch=st.sampled_from([0, 1, 2, 35]),
    last=st.booleans(),
    needs=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_forward_and_gradients_are_torchs(
    variant: str, drawn: tuple[Window, Pair], batch: int, last: bool, needs: tuple[bool, bool]
) -> None:
    window, image = drawn
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, window.shape[0], *image, generator=generator)
    weight, bias = torch.randn(window.shape, generator=generator), torch.randn(window.shape[0])
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    rest = window.stride, window.padding, window.dilation, window.groups
    expected = F.conv2d(*leaves, bias.double(), *rest)
    g = torch.randn(expected.shape, generator=generator)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    if last:
        x, g = (t.to(memory_format=torch.channels_last) for t in (x, g))
    found = [
        depthwise_forward(x, weight, window, bias),
        *depthwise_backward(g, x, weight, window, needs_x=needs[0], needs_weight=needs[1]),
    ]
    for got, exact, needed in zip(found, (expected.detach(), *gradients), (True, *needs), strict=True):
        assert (got is not None) == needed
        if got is not None:
            scale = 1 + float(exact.abs().max()) if exact.numel() else 1.0
            assert got.shape == exact.shape and bool(((got - exact).abs() <= 1e-5 * scale).all())


@pytest.mark.parametrize("case", range(len(DEPTHWISE)))
def test_results_do_not_depend_on_the_threads(
    variant: str, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dctps.kernels.depthwise, "_SERIAL", 0)
    window, x, g, weight, bias = drawn_depthwise(*DEPTHWISE[case])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            by = depthwise_backward(g, x, weight, window, needs_x=True, needs_weight=True)
            found.append([depthwise_forward(x, weight, window, bias), *by])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_channels_and_images_do_not_mix(variant: str) -> None:
    """A nan stays in its image and channel, also beside empty lanes and the padding."""
    window = Window((21, 1, 3, 3), (1, 1), (1, 1), (1, 1), 21)
    x, weight = torch.randn(3, 21, 6, 7), torch.randn(window.shape)
    clean = depthwise_forward(x, weight, window)
    x[1, 20, 0, 6] = torch.nan
    y = depthwise_forward(x, weight, window)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, 20, :2, 5:] = True
    assert bool(y[touched].isnan().all()) and torch.equal(y[~touched], clean[~touched])
