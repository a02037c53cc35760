"""Tiny ImageNet: 200 classes of 64x64 images, 500 of each for training, in its published folder layout.

Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip, a part of ImageNet (ILSVRC 2014).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dctps.data.folder import LabelledFiles, image_files, load_files, named_errors
from dctps.data.registry import register_dataset
from dctps.data.tensors import DataError, Dataset, Description

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

_FOLDER = "tiny-imagenet-200"
_REMEDY = f"fetch {URL}, unpack it, and point --data-dir or DCTPS_DATA at the folder that holds {_FOLDER}/"
_REPLACE = "unpack the archive again"


@register_dataset("tinyimagenet", Description(classes=200, channels=3, image_size=64))
def load_tiny_imagenet(
    data_dir: Path | None, download: bool = False, *, image_size: int | None = None
) -> Dataset:
    """Tiny ImageNet: 100,000 training images; the 10,000 published for validation are the test images.

    The labels of its own test part were never published. Classes are numbered in the order of `wnids.txt` and
    named by `words.txt`. Every image that the lists of boxes and annotations name must be there.

    Args:
        data_dir: holds `tiny-imagenet-200/`, or is that folder.
        download: not used: no checksum was published to check a download by.
        image_size: side to resize to; None leaves them at 64.

    Raises:
        DataError: the folder is missing or incomplete, or a file in it cannot be read; with its path.
    """
    if data_dir is None:
        raise DataError(f"tinyimagenet needs a data folder: {_REMEDY}")
    folder = data_dir if (data_dir / "wnids.txt").is_file() else data_dir / _FOLDER
    if not folder.is_dir():
        raise DataError(f"tinyimagenet is not in {data_dir}: {_REMEDY}")
    with named_errors(folder):
        labels = {row[0]: label for label, row in enumerate(_table(folder / "wnids.txt"))}
        words = folder / "words.txt"
        meanings = {row[0]: row[1] for row in _table(words) if len(row) > 1} if words.is_file() else {}
        names = [meanings.get(wnid, wnid) for wnid in labels]
        train = [pair for wnid in labels for pair in _train_files(folder / "train" / wnid, labels[wnid])]
        test = _test_files(folder / "val", labels)
        return load_files("tinyimagenet", folder, train, test, names, image_size, flip=True)


def _train_files(folder: Path, label: int) -> LabelledFiles:
    boxes = folder / f"{folder.name}_boxes.txt"
    named = [row[0] for row in _table(boxes)] if boxes.is_file() else []
    return [(file, label) for file in _complete(folder / "images", named, boxes)]


def _test_files(folder: Path, labels: dict[str, int]) -> LabelledFiles:
    annotations = folder / "val_annotations.txt"
    label_of = {}
    for number, row in enumerate(_table(annotations), 1):
        if len(row) < 2 or row[1] not in labels:
            raise DataError(f"line {number} of {annotations} names no class of wnids.txt: {_REPLACE}")
        label_of[row[0]] = labels[row[1]]
    files = _complete(folder / "images", label_of, annotations)
    if unnamed := [file.name for file in files if file.name not in label_of]:
        raise DataError(f"{annotations} does not name the image {unnamed[0]}: {_REPLACE}")
    return [(file, label_of[file.name]) for file in files]


def _complete(folder: Path, named: Collection[str], listing: Path) -> list[Path]:
    """The images in `folder`, once all that `listing` names are among them."""
    files = image_files(folder)
    names = {file.name for file in files}
    if missing := [name for name in named if name not in names]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(named)} images that {listing} names, such as "
            f"{missing[0]}: {_REPLACE}"
        )
    if not files:
        raise DataError(f"{folder} holds no image: {_REPLACE}")
    return files


def _table(path: Path) -> list[list[str]]:
    """The lines of a file that are not empty, at their tabs."""
    try:
        return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: {_REPLACE}") from error
