"""The native convolutions of every variant that this processor runs, against torch's own in float64."""

import pytest
import torch

import dctps.kernels.conv
import dctps.kernels.weight
from dctps.kernels import runnable_variants
from dctps.kernels.loader import function
from tests.support.drawn_conv import CASES, DrawnConv

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")


@pytest.mark.parametrize("variant", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_variant_is_torchs(variant: str, case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant not in runnable_variants():
        pytest.skip(f"this processor does not run {variant}")
    for module in (dctps.kernels.conv, dctps.kernels.weight):
        monkeypatch.setattr(module, "function", lambda name: function(name, variant))
    for last in (False, True):
        drawn = DrawnConv.draw(case, last)
        expected = drawn.expected()
        for cache in (3_000, 260_000):  # a small one cuts images into bands
            made = drawn.made(cache)
            assert len(made) == len(expected)
            for got, exact in zip(made, expected, strict=True):
                scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
                assert got.shape == exact.shape
                assert float((got.double() - exact).abs().max() if exact.numel() else 0.0) <= 1e-5 * scale


def test_variants_agree_whatever_the_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    drawn = DrawnConv.draw(len(CASES) - 1, True)
    try:
        for variant in runnable_variants():
            for module in (dctps.kernels.conv, dctps.kernels.weight):
                monkeypatch.setattr(module, "function", lambda name, variant=variant: function(name, variant))
            found = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(drawn.made(260_000))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.set_num_threads(before)
