"""The dense convolution by one matrix product for each tap, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dctps.nn.maps import Conv2d
from dctps.nn.taps import conv_by_taps, conv_by_taps_backward, is_by_taps

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 3),
)
def test_a_convolution_by_taps_is_torchs(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    image: tuple[int, int],
    batch: int,
) -> None:
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    image = tuple(max(size, span - 2 * pad) for size, span, pad in zip(image, spans, padding, strict=True))
    op = Conv2d(stride, padding, dilation, 1)
    x, weight = torch.randn(batch, 5, *image), torch.randn(4, 5, *kernel)
    x64, weight64 = (t.double().requires_grad_() for t in (x, weight))
    expected = F.conv2d(x64, weight64, None, stride, padding, dilation)
    g = torch.randn(expected.shape)
    by = torch.autograd.grad(expected, (x64, weight64), g.double())
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    got = conv_by_taps(x, weight, op), *conv_by_taps_backward(g, x, weight, op, True, True)
    for made, exact in zip(got, (expected.detach(), *by), strict=True):
        assert made is not None and made.shape == exact.shape
        assert torch.allclose(made.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("side", "by_taps"), [(1, True), (2, True), (4, False), (8, False)])
def test_only_small_images_are_taken_by_taps(side: int, by_taps: bool) -> None:
    op = Conv2d((1, 1), (1, 1), (1, 1), 1)
    x = torch.zeros(4, 64, side, side + (side == 1)).to(memory_format=torch.channels_last)
    assert is_by_taps(x, (64, 64, 3, 3), op) is by_taps
    assert not is_by_taps(x.contiguous(), (64, 64, 3, 3), op)
    assert not is_by_taps(x[:, :8].contiguous(memory_format=torch.channels_last), (64, 8, 3, 3), op)
