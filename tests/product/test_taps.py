"""The dense convolution by one matrix product for each tap, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dctps.kernels import variant
from dctps.offsets import build_offset
from dctps.product.geometry import conv_geometry
from dctps.product.path import Call
from dctps.product.paths.taps import TAPS

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
    geometry = conv_geometry((4, 5, *kernel), stride, padding, dilation, 1)
    x, weight = torch.randn(batch, 5, *image), torch.randn(4, 5, *kernel)
    x64, weight64 = (t.double().requires_grad_() for t in (x, weight))
    expected = F.conv2d(x64, weight64, None, stride, padding, dilation)
    g = torch.randn(expected.shape)
    by = torch.autograd.grad(expected, (x64, weight64), g.double())
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    assert geometry.outputs(x) == expected.shape
    grads = TAPS._gradients(g, x, weight, geometry, (True, True, False))
    got = TAPS._convolve(x, weight, geometry, None), *grads[:2]
    for made, exact in zip(got, (expected.detach(), *by), strict=True):
        assert made is not None and made.shape == exact.shape
        assert torch.allclose(made.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")
@pytest.mark.parametrize(("side", "wins"), [(1, True), (2, True), (4, False), (8, False)])
def test_only_small_images_are_taken_by_taps(side: int, wins: bool) -> None:
    def takes(channels: int, layout: torch.memory_format) -> bool:
        offset = build_offset("dct", (64, channels, 3, 3))
        geometry = conv_geometry(offset.shape, (1, 1), (1, 1), (1, 1), 1)
        x = torch.zeros(4, channels, side, side + (side == 1)).to(memory_format=layout)
        call = Call.of(x, 9, offset, geometry, native=True, training=True)
        return not TAPS.refusal(call) and TAPS.wins(call)

    assert takes(64, torch.channels_last) is wins
    assert not takes(64, torch.contiguous_format) and not takes(8, torch.channels_last)
