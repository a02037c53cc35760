"""Parts of a data set."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps import counter
from dctps.data import ImageTensors, first_of


def numbered(n):
    images = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n))


@given(n=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_a_part_is_the_permutations_first_in_their_old_order(n, share, seed):
    count = max(1, round(share * n))
    kept = first_of(numbered(n), count, seed, "train_images").labels.numpy()
    order = counter.permutation(counter.derive_key(seed, "", "train_images"), n).numpy()
    assert np.array_equal(kept, np.sort(order[:count]))
    assert set(first_of(numbered(n), max(1, count - 1), seed, "train_images").labels.tolist()) <= set(kept)


def test_none_is_all_and_so_is_too_many():
    data = numbered(7)
    assert first_of(data, None, 0, "train_images") is data
    assert first_of(data, 8, 0, "train_images") is data
