"""From a list of labelled image files to a data set; what a folder of classes and Tiny ImageNet share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dctps.data.cache import cached
from dctps.data.statistics import channel_statistics
from dctps.data.tensors import DataError, Dataset, ImageTensors, split_test

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
TEST_SHARE = 0.2


@dataclass
class Labelled:
    """Files and their labels, in one order."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, paths: list[Path], label: int) -> None:
        """Append files of one class."""
        self.paths += paths
        self.labels += [label] * len(paths)


def image_files(folder: Path) -> list[Path]:
    """Images in `folder` and below, sorted by path; hidden names and other suffixes are passed over.

    Raises:
        OSError: it cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def load_files(
    name: str,
    folder: Path,
    train: Labelled,
    test: Labelled | None,
    class_names: list[str],
    *,
    image_size: int | None,
    flip: bool,
    data_seed: int,
) -> Dataset:
    """Decode all files, through the cache in `folder`, and make them a data set.

    Args:
        name: of the data set.
        folder: that holds all files.
        train: at least one of each class.
        test: None splits `TEST_SHARE` of each class off `train`.
        class_names: in the order of the labels.
        image_size: see `dctps.data.images.read_images`.
        flip: whether a mirrored image keeps its label.
        data_seed: of the split.

    Raises:
        DataError: Pillow is not installed, or a file cannot be used; with its path.
        OSError: a file cannot be looked at.
    """
    try:
        from dctps.data.images import read_images  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError(f"{name} is read from image files by Pillow: pip install 'dctps[images]'") from error
    paths = train.paths + (test.paths if test else [])
    labels = torch.tensor(train.labels + (test.labels if test else []))
    images = cached(folder, paths, image_size, lambda: read_images(paths, image_size, progress=name))
    n = len(train.paths)
    training = ImageTensors(images[:n], labels[:n])
    if test is None:
        training, testing = split_test(training, TEST_SHARE, data_seed)
    else:
        testing = ImageTensors(images[n:], labels[n:])
    mean, std = channel_statistics(training.images)
    return Dataset(name, training, testing, len(class_names), mean, std, flip, tuple(class_names))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say what an `OSError` within means for the data set in `folder`.

    Raises:
        DataError: in its place.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or folder} ({error.strerror or error}): put it there, or make it "
            f"readable, or point --data-dir elsewhere"
        ) from error
