"""The embedded data set: 1,797 handwritten digits, 8x8, shown at 32x32.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0; the test part, in the order in which
scikit-learn's `load_digits` gives it. `tools/make_digits.py` wrote `digits.npz` from it. Changed here: values
0..16 become 0..255, and each pixel is repeated 4x4.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from dctps.data.registry import register_dataset
from dctps.data.tensors import Dataset, Description, ImageTensors

TEST_SIZE = 360


@register_dataset("digits", Description(classes=10, channels=1, image_size=32), published=True)
def load_digits(data_dir: Path | None = None, download: bool = False) -> Dataset:
    """The digits: 1,437 training and the last 360 as test images, (1, 32, 32), 10 classes.

    Args:
        data_dir: not used, the data is in the package.
        download: not used.
    """
    source = files("dctps.data").joinpath("digits.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as npz:
        small, labels = npz["images"], torch.from_numpy(npz["labels"].astype(np.int64))
    pixels = np.rint(small.astype(np.float64) * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels.repeat(4, axis=1).repeat(4, axis=2)).unsqueeze(1)
    train, test = (ImageTensors(images[p], labels[p]) for p in (slice(-TEST_SIZE), slice(-TEST_SIZE, None)))
    return Dataset("digits", train, test, 10, mean=(0.3054,), std=(0.3753,), flip=False)
