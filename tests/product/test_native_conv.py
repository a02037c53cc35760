"""The native kernel of convolutions, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dctps.kernels import Window, conv_backward, conv_forward, conv_weight, conv_weight_backward, variant
from dctps.nn import dps_conv2d
from dctps.offsets import build_offset

pytestmark = pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")

Pair = tuple[int, int]


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, Window]:
    """An offset's name and a convolution that it has filters for."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    name = draw(st.sampled_from(["zero", "dct", "sdct"]))
    kind = draw(st.sampled_from(["one group", "depthwise", "groups" if name == "zero" else "one group"]))
    groups = 1 if kind == "one group" else draw(st.integers(2, 5))
    channels = 1 if kind == "depthwise" else draw(st.sampled_from([1, 2, 3, 5, 16, 17, 40]))
    m = groups * draw(st.sampled_from([1, 2, 7, 16, 50]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    return name, Window((m, channels, *kernel), draw(pairs), padding, draw(pairs), groups)


@given(
    drawn=windows(),
    batch=st.sampled_from([0, 1, 2, 17]),
    image=st.tuples(st.integers(13, 15), st.integers(13, 36)),
    density=st.sampled_from([0.0, 0.01, 0.3]),
    layouts=st.tuples(st.booleans(), st.booleans()),
    cache=st.sampled_from([2_000, 260_000]),  # a small one cuts images into bands
)
def test_forward_and_gradients_are_torchs(
    drawn: tuple[str, Window], batch: int, image: Pair, density: float, layouts: tuple[bool, bool], cache: int
) -> None:
    name, window = drawn
    offset = build_offset(name, window.shape, groups=window.groups)
    generator = torch.Generator().manual_seed(batch)
    size = offset.out_features * offset.in_features
    support = torch.randperm(size, generator=generator)[: round(density * size)].sort().values
    values = torch.randn(len(support), generator=generator)
    alpha = None if name == "zero" else torch.tensor([0.7])
    channels = window.shape[1] * window.groups
    x = torch.randn(batch, channels, *image, generator=generator)
    x = x.to(memory_format=torch.channels_last) if layouts[0] else x

    leaves = [x.double(), values.double(), None if alpha is None else alpha.double()]
    x64, values64, alpha64 = (t if t is None else t.requires_grad_() for t in leaves)
    weight = torch.zeros(size, dtype=torch.float64).index_put((support,), values64).reshape(window.shape)
    if alpha64 is not None:
        weight = weight + alpha64 * offset.to_dense(dtype=torch.float64)
    expected = F.conv2d(x64, weight, None, window.stride, window.padding, window.dilation, window.groups)

    filters = offset.filters()
    y = conv_forward(x, values, support, alpha, filters, window, cache=cache)
    last = batch > 0 and layouts[0] and not x.is_contiguous()
    assert y.shape == expected.shape and (not last or y.is_contiguous(memory_format=torch.channels_last))
    g = torch.randn(y.shape, generator=generator)
    g = g.to(memory_format=torch.channels_last) if layouts[1] else g
    expected.backward(g.double())
    needs = (True, True, alpha is not None)
    got = conv_backward(g, x, values, support, alpha, filters, window, needs, cache=cache)
    assert close(y, expected)
    assert close(got[0], x64.grad)
    assert close(got[1], values64.grad)
    if alpha64 is not None:
        assert abs(float(got[2] - alpha64.grad)) <= 1e-6 * (1 + float(x64.grad.norm() * x.norm()))


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = 1 + float(expected.detach().abs().max()) if expected.numel() else 1.0
    return got.shape == expected.shape and bool(((got - expected).abs() <= 1e-5 * scale).all())


@pytest.mark.parametrize("name", ["dct", "sdct"])
@pytest.mark.parametrize(
    "shape", [(64, 64, 3, 3), (90, 4, 3, 2), (50, 33, 3, 1), (12, 40, 1, 1), (40, 12, 1, 1)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_weight_and_its_gradients(name: str, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    offset = build_offset(name, shape)
    size = offset.out_features * offset.in_features
    support = torch.randperm(size)[: size // 3].sort().values
    values, alpha = torch.randn(len(support)), torch.tensor([0.7])
    weight = conv_weight(values, support, alpha, offset.filters(), shape, layout)
    dense = offset.to_dense(dtype=torch.float64)
    expected = (0.7 * dense).flatten().index_add(0, support, values.double()).reshape(shape)
    assert weight.is_contiguous(memory_format=layout) and torch.allclose(weight.double(), expected, atol=1e-6)
    g = torch.randn(shape).to(memory_format=layout)
    by_values, by_alpha = conv_weight_backward(
        g, values, support, alpha, offset.filters(), needs_values=True, needs_alpha=True
    )
    assert torch.equal(by_values, g.reshape(-1)[support])
    assert abs(float(by_alpha) - float((g.double() * dense).sum())) < 1e-5 * float(g.norm() * dense.norm())


@pytest.mark.parametrize("name", ["dct", "sdct", "zero"])
def test_results_do_not_depend_on_the_thread_count(name: str) -> None:
    window = Window((70, 40, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    offset = build_offset(name, window.shape)
    support = torch.arange(0, 70 * 40 * 9, 37)
    values, alpha = torch.randn(len(support)), None if name == "zero" else torch.ones(1)
    x, g = torch.randn(19, 40, 12, 12), torch.randn(19, 70, 12, 12)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            arguments = (x, values, support, alpha, offset.filters(), window)
            by = conv_backward(g, *arguments, (True, True, alpha is not None))
            found.append([conv_forward(*arguments), *(t for t in by if t is not None)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", ["native", "dense"])
@pytest.mark.parametrize("name", ["dct", "sdct"])
def test_second_derivatives_and_half_precision_follow_the_float64_path(name: str, backend: str) -> None:
    offset = build_offset(name, (6, 4, 3, 3))
    support = torch.arange(0, 216, 5)

    def product(x: torch.Tensor, values: torch.Tensor, alpha: torch.Tensor, backend: str) -> torch.Tensor:
        return dps_conv2d(x, values, support, offset, alpha, padding=(1, 1), backend=backend)  # type: ignore[arg-type]

    inputs = torch.randn(2, 4, 7, 8), torch.randn(len(support)), torch.tensor([0.8])

    def second(dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        first = torch.autograd.grad(
            product(*leaves, backend=backend).square().sum(), leaves, create_graph=True
        )
        return list(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))

    for got, expected in zip(second(torch.float32, backend), second(torch.float64, "dense"), strict=True):
        assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    with torch.no_grad():
        half = product(*(t.bfloat16() for t in inputs), backend=backend)
        exact = product(*(t.double() for t in inputs), backend="dense")
    assert half.dtype == torch.bfloat16
    assert float((half.double() - exact).abs().max()) <= 2e-2 * float(exact.abs().max())
