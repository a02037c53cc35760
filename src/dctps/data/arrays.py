"""Images and labels that are arrays already, in memory or in NumPy's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dctps.data.registry import register_dataset
from dctps.data.tensors import TEST_SHARE, DataError, Dataset, ImageTensors, split_test

_NAMES = ("images", "labels", "test_images", "test_labels")
_WANTED = "images and labels, and perhaps test_images and test_labels"
_LAYOUT = f"an .npz file that holds {_WANTED}, or a folder with an .npy file for each"
_MOST_CHANNELS = 4
_MOST_CLASSES = 2**20

# What numpy.asarray takes: arrays, tensors on the CPU, nested lists.
Pair = tuple[Any, Any]


@register_dataset("arrays")
def load_arrays(data_dir: Path | None, download: bool = False, *, data_seed: int = 0) -> Dataset:
    """Arrays from an .npz file, or from a folder of .npy files; see `from_arrays`.

    Args:
        data_dir: the file or the folder.
        download: not used: nobody else has these arrays.
        data_seed: of the test set's split, where it has none.

    Raises:
        DataError: the file is missing or damaged, or its arrays are no labelled images.
    """
    if data_dir is None:
        raise DataError(f"the data set arrays needs --data-dir or DCTPS_DATA: {_LAYOUT}")
    arrays = _read(data_dir)
    if set(arrays) not in (set(_NAMES), set(_NAMES[:2])):
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{data_dir} holds {found}, where {_WANTED} are wanted")
    images, labels, *test = [arrays[name] for name in _NAMES if name in arrays]
    try:
        return from_arrays((images, labels), (test[0], test[1]) if test else None, data_seed=data_seed)
    except DataError as error:
        raise DataError(f"{data_dir}: {error}") from error


def from_arrays(
    train: Pair,
    test: Pair | None = None,
    *,
    name: str = "arrays",
    flip: bool = False,
    class_names: tuple[str, ...] = (),
    data_seed: int = 0,
) -> Dataset:
    """A data set of arrays or tensors `(images, labels)`; mean and deviation are the training images'.

    Args:
        train: images, uint8, (n, height, width), (n, channels, height, width) or (n, height, width, channels)
            with at most 4 channels; labels, integers, (n,), each of 0, 1, 2, ... at least once.
        test: likewise; None splits a fifth of each class, drawn by `data_seed`, off `train`.
        name: of the data set.
        flip: whether a mirrored image keeps its label, as of animals and not of letters.
        class_names: of the classes in the order of their labels, if any.
        data_seed: of the split.

    Raises:
        DataError: they are no labelled images, or the two parts do not fit each other.
    """
    training = _labelled("the training part", *train)
    counts = torch.bincount(training.labels)
    if len(counts) < 2 or not counts.all():
        wrong = "only the class 0" if len(counts) < 2 else f"no image of class {int(counts.argmin())}"
        raise DataError(f"the training part has {wrong}: labels must be 0, 1, 2, ... with images of each")
    if test is None:
        training, testing = split_test(training, TEST_SHARE, data_seed)
    else:
        testing = _labelled("the test part", *test)
    try:
        return Dataset.measured(name, training, testing, flip, class_names)
    except ValueError as error:
        raise DataError(str(error)) from error


def _labelled(part: str, images: Any, labels: Any) -> ImageTensors:
    pixels, classes = _array(f"the images of {part}", images), _array(f"the labels of {part}", labels)
    if pixels.dtype != np.uint8:
        raise DataError(f"the images of {part} are {pixels.dtype}, and uint8 is wanted: scale them to 0..255")
    if classes.dtype.kind not in "iu" or classes.ndim != 1:
        found = f"{classes.dtype} of shape {classes.shape}"
        raise DataError(f"the labels of {part} are {found}: give each image an integer")
    pixels = _channels_first(part, pixels)
    if not len(pixels) == len(classes) > 0:
        raise DataError(f"{part} has {len(pixels)} images and {len(classes)} labels: give each image a label")
    if not 0 <= int(classes.min()) <= int(classes.max()) < _MOST_CLASSES:
        found = f"{classes.min()} to {classes.max()}"
        raise DataError(f"the labels of {part} run from {found}: they must be 0, 1, 2, ...")
    # Copies: the caller's arrays may change, or be read-only.
    return ImageTensors(torch.from_numpy(pixels.copy(order="C")), torch.from_numpy(classes.astype(np.int64)))


def _array(what: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} are no array ({error})") from error


def _channels_first(part: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape = pixels.shape
    if len(shape) == 3 and 0 not in shape[1:]:
        return pixels[:, None]
    if len(shape) == 4 and 0 not in shape[1:]:
        first, last = shape[1] <= _MOST_CHANNELS, shape[3] <= _MOST_CHANNELS
        if first != last:
            return pixels if first else pixels.transpose(0, 3, 1, 2)
    raise DataError(
        f"the images of {part} have the shape {shape}: (n, height, width), (n, channels, height, width) or "
        f"(n, height, width, channels) is wanted, with at most {_MOST_CHANNELS} channels and larger sides"
    )


def _read(path: Path) -> Mapping[str, NDArray[Any]]:
    if not path.exists():
        raise DataError(f"there is no {path}: point --data-dir at {_LAYOUT}")
    try:
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in _NAMES}
            return {name: np.load(file, allow_pickle=False) for name, file in files.items() if file.exists()}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
            return {name: npz[name] for name in _NAMES if name in npz}
    # NumPy answers damaged files with nearly every kind of exception.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {path} ({reason}): point --data-dir at {_LAYOUT}") from error
