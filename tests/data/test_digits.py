import numpy as np
import pytest
import torch

from dctps.data import load_dataset


def test_digits_are_scikit_learns_at_32x32():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    source = sklearn_datasets.load_digits()
    expected = np.stack([np.kron(image, np.ones((4, 4))) * 255 / 16 for image in source.images])
    digits = load_dataset("digits")
    images = torch.cat([digits.train.images, digits.test.images])
    assert images.shape == (1797, 1, 32, 32)
    assert np.abs(images[:, 0].numpy() - expected).max() <= 0.5
    assert torch.cat([digits.train.labels, digits.test.labels]).tolist() == source.target.tolist()


def test_digits_facts():
    digits = load_dataset("digits", "no/such/folder", download=True)
    assert (len(digits.train), len(digits.test), digits.classes, digits.flip) == (1437, 360, 10, False)
    levels = digits.train.images.unique().tolist()
    assert levels == [round(v * 255 / 16) for v in range(17)]
    pixels = digits.train.images.to(torch.float64) / 255
    assert digits.mean == (round(float(pixels.mean()), 4),)
    assert digits.std == (round(float(pixels.std(correction=0)), 4),)
