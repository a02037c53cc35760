import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps.data import channel_statistics, load_dataset


@given(st.integers(1, 1100), st.integers(1, 3), st.integers(0, 99))
def test_as_numpy_in_float64(n, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, channels, 2, 3), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    assert np.allclose(mean, images.mean((0, 2, 3)) / 255, rtol=1e-12)
    assert np.allclose(std, images.std((0, 2, 3)) / 255, rtol=1e-9)


def test_order_does_not_matter_to_the_bit():
    images = torch.randint(
        256, (3000, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert channel_statistics(images) == channel_statistics(images.flip(0))


def test_a_constant_channel_can_be_divided_by():
    assert channel_statistics(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_the_digits_published_numbers():
    digits = load_dataset("digits")
    mean, std = channel_statistics(digits.train.images)
    assert (round(mean[0], 4), round(std[0], 4)) == (digits.mean[0], digits.std[0])
