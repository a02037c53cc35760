"""The native batch normalisation in every variant that this processor runs, against torch's in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dctps.kernels.norm
from dctps.kernels import runnable_variants
from dctps.kernels.loader import function
from dctps.kernels.norm import NO_BOUNDS, RELU, RELU6, Bounds, norm_backward, norm_forward, norm_statistics

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")

EPSILON, MOMENTUM = 1e-5, 0.1


@pytest.fixture(params=runnable_variants())
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dctps.kernels.norm, "function", lambda name: function(name, request.param))
    return request.param


@st.composite
def images(draw: st.DrawFn) -> tuple[torch.Tensor, str]:
    """Images of a drawn shape, and how they lie in memory."""
    shape = (
        draw(st.sampled_from([1, 2, 3, 40])),
        draw(st.sampled_from([1, 2, 7, 15, 16, 17, 33, 50, 300])),
        draw(st.sampled_from([1, 2, 5, 13])),
        draw(st.sampled_from([1, 3, 4, 11, 40])),
    )
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])
    lies = draw(st.sampled_from(["channels last", "NCHW", "strided"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = 3 * torch.randn(shape, generator=generator) + 5
    return laid_out(x, lies), lies


def laid_out(x: torch.Tensor, lies: str) -> torch.Tensor:
    if lies == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.repeat(1, 1, 1, 2)[..., ::2].copy_(x) if lies == "strided" else x


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=images(),
    training=st.booleans(),
    bounds=st.sampled_from([NO_BOUNDS, RELU, RELU6, Bounds(-0.5, math.nan), Bounds(-0.7, 0.3)]),
    affine=st.booleans(),
    adds=st.booleans(),
    runs=st.booleans(),
    needs=st.tuples(*4 * [st.booleans()]),
)
def test_forward_and_gradients_are_torchs(
    variant: str,
    drawn: tuple[torch.Tensor, str],
    training: bool,
    bounds: Bounds,
    affine: bool,
    adds: bool,
    runs: bool,
    needs: tuple[bool, ...],
) -> None:
    x, lies = drawn
    channels = x.shape[1]
    weight, bias = (torch.randn(channels) for _ in range(2)) if affine else (None, None)
    residual = laid_out(torch.randn(x.shape), "NCHW" if lies == "channels last" else lies) if adds else None
    running = [torch.randn(channels) + 5, torch.rand(channels) + 1] if runs or not training else [None, None]
    leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias, residual)]
    exact_running = [None if t is None else t.double() for t in running]
    expected = F.batch_norm(leaves[0], *exact_running, *leaves[1:3], training, MOMENTUM, EPSILON)
    expected = expected if residual is None else expected + leaves[3]
    g = torch.randn(x.shape)
    for bound in bounds:  # where rounding decides which side y is on
        g[(expected.detach() - bound).abs() < 1e-4] = 0
    if bounds is not NO_BOUNDS:
        expected = F.hardtanh(
            expected, *(e if math.isnan(b) else b for b, e in zip(bounds, (-1e9, 1e9), strict=True))
        )
    wanted = [leaf if leaf is not None and need else None for leaf, need in zip(leaves, needs, strict=True)]
    found = (
        torch.autograd.grad(
            expected + 0 * leaves[0],
            [leaf for leaf in wanted if leaf is not None],
            g.double(),
            allow_unused=True,
        )
        if any(leaf is not None for leaf in wanted)
        else ()
    )
    exact = iter(found)

    rest = {"training": training, "momentum": MOMENTUM, "epsilon": EPSILON}
    table = norm_statistics(x, weight, bias, tuple(running), **rest)
    y = norm_forward(x, table, bounds, residual)
    grads = norm_backward(
        g, x, table, bounds, None if residual is None else y, training=training,
        needs=tuple(leaf is not None for leaf in wanted),
    )  # fmt: skip
    assert y.shape == x.shape and close(y, expected.detach())
    assert lies == "strided" or y.stride() == x.stride()
    for moved, exact_moved in zip(running, exact_running, strict=True):
        assert moved is None or close(moved, exact_moved)
    count = x.numel() // channels
    for got, leaf in zip(grads, wanted, strict=True):
        assert (got is not None) == (leaf is not None)
        if got is not None:
            # Of a few numbers, differences of large ones are left.
            assert close(got, next(exact), 1e-5 if count > 8 else 1e-3)


def close(got: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> bool:
    scale = 1 + float(exact.abs().max())
    return bool(((got - exact).abs() <= tolerance * scale).all())


def test_statistics_are_as_exact_far_from_zero_as_torchs(variant: str) -> None:
    """A mean of a thousand standard deviations: what is left is the rounding of the mean that is kept."""
    for order in (torch.channels_last, torch.contiguous_format):
        x = (torch.randn(16, 24, 16, 16) + 1000).contiguous(memory_format=order)
        exact = x.double()
        weight, bias = torch.ones(24), torch.zeros(24)
        rest = {"training": True, "momentum": MOMENTUM, "epsilon": EPSILON}
        table = norm_statistics(x, weight, bias, (None, None), **rest)
        variance = exact.var((0, 2, 3), correction=0)
        assert bool(((table[0] - exact.mean((0, 2, 3))).abs() <= 7e-8 * 1000).all())
        assert bool(((table[1] - (variance + EPSILON).rsqrt()).abs() <= 1e-6).all())
        error = (norm_forward(x, table) - F.batch_norm(exact, None, None, training=True)).abs().max()
        torchs = (
            (F.batch_norm(x, None, None, training=True) - F.batch_norm(exact, None, None, training=True))
            .abs()
            .max()
        )
        assert error <= torchs


@pytest.mark.parametrize("shape", [(32, 40, 16, 16), (2, 700, 9, 9), (40, 3, 40, 40)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_results_do_not_depend_on_the_threads(
    variant: str, shape: tuple[int, ...], order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dctps.kernels.norm, "_SERIAL", 0)
    x, g, residual = (torch.randn(shape).contiguous(memory_format=order) for _ in range(3))
    weight, before, found = torch.randn(shape[1]), torch.get_num_threads(), []
    rest = {"training": True, "momentum": MOMENTUM, "epsilon": EPSILON}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            table = norm_statistics(x, weight, weight, (None, None), **rest)
            y = norm_forward(x, table, RELU, residual)
            grads = norm_backward(g, x, table, RELU, y, training=True, needs=4 * (True,))
            found.append([table, y, *grads])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_nan_stays_in_its_channel_and_passes_activations(variant: str) -> None:
    for order in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(3, 21, 6, 7).contiguous(memory_format=order)
        rest = {"training": False, "momentum": 0.0, "epsilon": EPSILON}
        table = norm_statistics(x, None, None, (torch.zeros(21), torch.ones(21)), **rest)
        clean = norm_forward(x, table, RELU6)
        x[1, 20, 0, 6] = torch.nan
        y = norm_forward(x, table, RELU6)
        assert bool(y[1, 20, 0, 6].isnan()) and int(y.isnan().sum()) == 1
        y[1, 20, 0, 6] = clean[1, 20, 0, 6]
        assert torch.equal(y, clean)
        g = torch.ones_like(x)
        (grad, *_) = norm_backward(g, x, table, RELU6, training=False, needs=(True, False, False, False))
        assert grad[1, 20, 0, 6] != 0  # as in torch
        rest["training"] = True
        table = norm_statistics(x, None, None, (None, None), **rest)
        assert bool(table[:3, 20].isnan().all()) and not bool(table[:, :20].isnan().any())
