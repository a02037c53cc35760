"""Tiny ImageNet: 200 classes of 64x64 images, 500 of each for training, in its published folder layout.

Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip, a part of ImageNet (ILSVRC 2014).
"""

from __future__ import annotations

from pathlib import Path

from dctps.data.files import Labelled, image_files, load_files, reading
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
    with reading(folder):
        wnids = [line for line in _lines(folder / "wnids.txt") if line]
        return load_files(
            "tinyimagenet",
            folder,
            _train(folder, wnids),
            _validation(folder, wnids),
            _names(folder, wnids),
            image_size=image_size,
            flip=True,
            data_seed=0,
        )


def _train(folder: Path, wnids: list[str]) -> Labelled:
    train = Labelled()
    for label, wnid in enumerate(wnids):
        images = folder / "train" / wnid / "images"
        files = image_files(images)
        boxes = images.parent / f"{wnid}_boxes.txt"
        named = [line.split("\t")[0] for line in _lines(boxes) if line] if boxes.is_file() else []
        _refuse_missing({path.name for path in files}, named, images, boxes)
        if not files:
            raise DataError(f"{images} holds no image: {_REPLACE}")
        train.add(files, label)
    return train


def _validation(folder: Path, wnids: list[str]) -> Labelled:
    images, annotations = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    files = {path.name: path for path in image_files(images)}
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    rows = [line.split("\t") for line in _lines(annotations) if line]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or row[1] not in labels:
            raise DataError(f"line {number} of {annotations} names no class of wnids.txt: {_REPLACE}")
    of_file = {row[0]: labels[row[1]] for row in rows}
    _refuse_missing(set(files), list(of_file), images, annotations)
    if unnamed := sorted(files.keys() - of_file.keys()):
        raise DataError(f"{annotations} does not name the image {unnamed[0]}: {_REPLACE}")
    if not files:
        raise DataError(f"{images} holds no image: {_REPLACE}")
    return Labelled(list(files.values()), [of_file[name] for name in files])


def _refuse_missing(there: set[str], named: list[str], images: Path, listing: Path) -> None:
    missing = [name for name in named if name not in there]
    if missing:
        raise DataError(
            f"{images} lacks {len(missing)} of the {len(named)} images that {listing} names, such as "
            f"{missing[0]}: {_REPLACE}"
        )


def _names(folder: Path, wnids: list[str]) -> list[str]:
    words = folder / "words.txt"
    rows = [line.split("\t") for line in _lines(words)] if words.is_file() else []
    meant = {row[0]: row[1] for row in rows if len(row) > 1}
    return [meant.get(wnid, wnid) for wnid in wnids]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: {_REPLACE}") from error
