"""The few sequences that hold the channel factors of a DCT convolution, against scipy's."""

import math

import numpy as np
import pytest
import torch
from scipy.signal.windows import dpss

from dctps.offsets.channel_factors import _sequences, channel_basis, channel_coordinates, channel_factors

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("band", [0.05, 0.3])
def test_the_sequences_are_slepians(n: int, band: float) -> None:
    found = _sequences(n, band).numpy()
    assert np.allclose(found @ found.T, np.eye(n), atol=1e-12)
    if n >= 8:  # scipy's own fail below
        exact = dpss(n, n * band / 2, Kmax=min(n, 4))
        assert np.allclose(np.abs((found[: len(exact)] * exact).sum(1)), 1, atol=1e-9)


@pytest.mark.parametrize("size", [(64, 64, 9), (50, 40, 4), (7, 2, 4), (90, 5, 3), (130, 256, 9)])
def test_the_basis_holds_the_factors(size: tuple[int, int, int]) -> None:
    m, channels, taps = size
    q = max(m, channels * taps)
    o, c = np.arange(m)[:, None], np.arange(channels)
    angles = math.pi * o * (2 * c + 1) / (2 * q)
    exact = np.stack([np.cos(angles), np.sin(angles)], 1) * np.sqrt(np.where(o == 0, 1, 2) / q)[:, None]
    exact = exact.reshape(2 * m, channels)
    factors = channel_factors(size, torch.float64, CPU).numpy()
    held = (channel_coordinates(size, torch.float64, CPU) @ channel_basis(size, torch.float64, CPU)).numpy()
    assert np.allclose(factors, exact, atol=1e-13)
    assert np.linalg.norm(held - exact) <= 2e-7 * np.linalg.norm(exact)
