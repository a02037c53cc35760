"""Image data sets as tensors, and what splits a part off the training images."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dctps import counter

TEST_SHARE = 0.2  # of the images that come without a test set
_CHUNK = 1024  # images whose pixels are counted at a time: about a million pixels


class DataError(Exception):
    """Data that is missing, cut off or not what it should be; the message says what to do about it."""


@dataclass(frozen=True)
class Description:
    """What a network needs to know of a data set, known before its files are read.

    Attributes:
        classes: number of classes.
        channels: of its images.
        image_size: height and width of its images, in pixels.
    """

    classes: int
    channels: int
    image_size: int


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """Labelled images, kept as the bytes they were published as.

    Attributes:
        images: uint8, (n, channels, height, width).
        labels: int64, (n,), on the images' device.
        sha256: of shape, pixels and labels; computed when first asked for, about a second for a gigabyte.

    Raises:
        ValueError: a shape, a dtype or the devices are not these.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images must be torch.uint8 of shape (n, channels, height, width), got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise ValueError(f"labels must be torch.int64 of shape ({len(self.images)},), got {found}")
        if self.labels.device != self.images.device:
            raise ValueError(f"images are on {self.images.device}, labels on {self.labels.device}: move one")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sha256(self) -> str:  # noqa: D102 (see Attributes)
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ImageTensors:
        """The same images and labels on `device`."""
        return ImageTensors(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> ImageTensors:
        """Copies of the images at `indices` (int64, (k,)), in that order."""
        indices = indices.to(self.images.device)
        return ImageTensors(self.images.index_select(0, indices), self.labels.index_select(0, indices))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named image classification task.

    Attributes:
        name: the name it is loaded by.
        train: training images, validation not yet split off.
        test: test images of the same shape.
        classes: number of classes; labels are 0..classes-1.
        mean: per channel over the training images, pixels scaled to [0, 1].
        std: likewise.
        flip: whether a horizontal flip keeps the label.
        class_names: of the classes in the order of their labels, where they have names.

    Raises:
        ValueError: the parts do not fit each other.
    """

    name: str
    train: ImageTensors
    test: ImageTensors
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train_shape, test_shape = tuple(self.train.images.shape[1:]), tuple(self.test.images.shape[1:])
        if train_shape != test_shape:
            raise ValueError(f"{self.name}: training images are {train_shape}, test images {test_shape}")
        if not len(self.mean) == len(self.std) == train_shape[0]:
            raise ValueError(
                f"{self.name}: mean and std take one number for each of {train_shape[0]} channels"
            )
        if min(self.std) <= 0:
            raise ValueError(f"{self.name}: std must be positive, got {self.std}")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{self.name}: {len(self.class_names)} class names for {self.classes} classes")
        for part, labels in (("training", self.train.labels), ("test", self.test.labels)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                raise ValueError(
                    f"{self.name}: {part} labels run from {int(labels.min())} to {int(labels.max())}, "
                    f"which is not within 0..{self.classes - 1}"
                )

    @classmethod
    def measured(
        cls, name: str, train: ImageTensors, test: ImageTensors, flip: bool, class_names: tuple[str, ...] = ()
    ) -> Dataset:
        """A data set with the training images' own mean and deviation, and as many classes as labels.

        Raises:
            ValueError: the parts do not fit each other.
        """
        classes = int(train.labels.max()) + 1
        return cls(name, train, test, classes, *channel_statistics(train.images), flip, class_names)

    @property
    def description(self) -> Description:
        """What a network needs to know of it.

        Raises:
            DataError: the images are not square.
        """
        channels, height, width = self.train.images.shape[1:]
        if height != width:
            raise DataError(
                f"the images of {self.name} are {width}x{height}, and networks take square ones: "
                f"--image-size {min(height, width)} (image_size) crops and resizes them"
            )
        return Description(self.classes, channels, height)

    def to_dict(self) -> dict[str, Any]:
        """What it is, down to the bits of its images, ready for JSON.

        Raises:
            DataError: the images are not square.
        """
        return {
            "name": self.name,
            **asdict(self.description),
            "class_names": list(self.class_names),
            "train": len(self.train),
            "test": len(self.test),
            "sha256": {"train": self.train.sha256, "test": self.test.sha256},
            "mean": list(self.mean),
            "std": list(self.std),
            "flip": self.flip,
        }


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, pixels scaled to [0, 1].

    They come from integer sums over a histogram of the 256 values, so that they depend on nothing but the
    pixels: neither on the machine nor on the order of the images.

    Args:
        images: uint8, (n, channels, height, width), n >= 1.

    Returns:
        The means, and the deviations; 1 for a constant channel, so that it can be divided by.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device="cpu")
        for chunk in images.split(_CHUNK):
            counts += torch.bincount(chunk[:, channel].reshape(-1), minlength=256).cpu()
        n, total, squares = (sum(v**power * k for v, k in enumerate(counts.tolist())) for power in range(3))
        means.append(total / (255 * n))
        deviations.append(math.sqrt(n * squares - total**2) / (255 * n) or 1.0)
    return tuple(means), tuple(deviations)


def split_validation(
    train: ImageTensors, validation_size: int, data_seed: int
) -> tuple[ImageTensors, ImageTensors]:
    """Split a validation set off the training images.

    Validation are the first `validation_size` entries of `counter.permutation` under the key
    `(data_seed, "", "split")`: a seed of its own, so that runs with other seeds share the split.

    Args:
        train: n images.
        validation_size: number of validation images, 0..n-1.
        data_seed: any integer.

    Returns:
        The training part and the validation part, each in the original order.

    Raises:
        ValueError: `validation_size` is not within 0..n-1.
    """
    n = len(train)
    if not 0 <= validation_size < n:
        raise ValueError(f"validation size {validation_size} is not within 0..{n - 1} of {n} training images")
    order = _order(n, data_seed, "split")
    return _in_two(train, order[:validation_size])


def first_of(data: ImageTensors, count: int | None, data_seed: int, purpose: str) -> ImageTensors:
    """At most `count` images: the first in the order of `counter.permutation` under (data_seed, "", purpose).

    Args:
        data: n images.
        count: at least 1 (None: all).
        data_seed: any integer.
        purpose: what they are for; another purpose takes others.

    Returns:
        These images in the original order.
    """
    if count is None or count >= len(data):
        return data
    return data.select(_order(len(data), data_seed, purpose)[:count].sort().values)


def split_test(data: ImageTensors, share: float, data_seed: int) -> tuple[ImageTensors, ImageTensors]:
    """Split a test set off images that come without one, by class.

    Of a class with k images round(share * k) are test images, but at least one and never all: the first of
    them in the order of `counter.permutation` under the key `(data_seed, "", "test")`.

    Args:
        data: n images, at least two of each class that occurs.
        share: of each class, in (0, 1).
        data_seed: any integer.

    Returns:
        The training part and the test part, each in the original order.

    Raises:
        DataError: a class has a single image.
    """
    order = _order(len(data), data_seed, "test")
    labels = data.labels[order]
    chosen = []
    for label, count in enumerate(torch.bincount(labels).tolist()):
        if count == 1:
            raise DataError(
                f"class {label} has a single image, which cannot be both for training and for the test: "
                f"add images, or give a test set of its own"
            )
        size = min(max(round(share * count), 1), count - 1) if count else 0
        chosen.append(order[labels == label][:size])
    return _in_two(data, torch.cat(chosen))


def _order(n: int, data_seed: int, purpose: str) -> Tensor:
    return counter.permutation(counter.derive_key(data_seed, "", purpose), n)


def _in_two(data: ImageTensors, second: Tensor) -> tuple[ImageTensors, ImageTensors]:
    """The images that are not at `second`, and the images at `second`."""
    in_first = torch.ones(len(data), dtype=torch.bool)
    in_first[second] = False
    return data.select(in_first.nonzero().flatten()), data.select(second.sort().values)
