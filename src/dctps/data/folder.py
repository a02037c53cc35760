"""Image files to data sets: a folder for each class, and what other layouts of files share with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dctps.data.cache import cached
from dctps.data.registry import register_dataset
from dctps.data.tensors import TEST_SHARE, DataError, Dataset, ImageTensors, split_test

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_LAYOUT = "a folder for each class with its images in it, or train/ and test/ (or val/) with such folders"

LabelledFiles = list[tuple[Path, int]]


@register_dataset("folder")
def load_folder(
    data_dir: Path | None,
    download: bool = False,
    *,
    image_size: int | None = None,
    data_seed: int = 0,
    flip: bool = False,
) -> Dataset:
    """Images in a folder for each class, whose names in alphabetical order are the classes 0, 1, 2, ...

    `data_dir` holds `train/` and `test/` (or else `val/`) with the classes' folders in them. Where it holds
    only `train/`, or the classes' folders themselves, a fifth of each class, drawn by `data_seed`, is the
    test set. The images have three channels, or one where every image is grey.

    Args:
        data_dir: the folder.
        download: not used: nobody else has these images.
        image_size: side to which every image is cropped and resized; None where they are of one size.
        data_seed: of the split.
        flip: whether a mirrored image keeps its label, as of animals and not of letters.

    Raises:
        DataError: the folder has another layout, or a file in it cannot be read; with its path.
    """
    if data_dir is None:
        raise DataError(f"the data set folder needs --data-dir or DCTPS_DATA, with {_LAYOUT}")
    if not data_dir.is_dir():
        raise DataError(f"there is no folder {data_dir}: point --data-dir at {_LAYOUT}")
    with named_errors(data_dir):
        top = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
        names = _class_names(top)
        train = []
        for label, name in enumerate(names):
            files = image_files(top / name)
            if not files:
                raise DataError(f"the class folder {top / name} holds no image: put some there, or delete it")
            train += [(file, label) for file in files]
        test = None if top == data_dir else _test_files(data_dir, names)
        return load_files("folder", data_dir, train, test, names, image_size, flip=flip, data_seed=data_seed)


def image_files(folder: Path) -> list[Path]:
    """Images in `folder` and below, sorted by path; without hidden ones and those of other `SUFFIXES`."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        files = [Path(parent, name) for name in names if name[0] != "."]
        found += [file for file in files if file.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def load_files(
    name: str,
    folder: Path,
    train: LabelledFiles,
    test: LabelledFiles | None,
    class_names: list[str],
    image_size: int | None,
    *,
    flip: bool,
    data_seed: int = 0,
) -> Dataset:
    """Decode files within `folder`, through its cache; without test files, split a test set off `train`.

    Without Pillow, or with a file that cannot be used, that is a DataError; it has the file's path.
    """
    try:
        from dctps.data.images import read_images  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError(f"{name} is read from image files by Pillow: pip install 'dctps[images]'") from error
    paths, numbers = zip(*train, *(test or []), strict=True)
    images = cached(folder, paths, image_size, lambda: read_images(paths, image_size, progress=name))
    n, labels = len(train), torch.tensor(numbers)
    training, testing = ImageTensors(images[:n], labels[:n]), ImageTensors(images[n:], labels[n:])
    if test is None:
        training, testing = split_test(training, TEST_SHARE, data_seed)
    return Dataset.measured(name, training, testing, flip, tuple(class_names))


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` within into a `DataError` that says what to do about the data set in `folder`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or folder} ({error.strerror or error}): put it there, or make it "
            f"readable, or point --data-dir elsewhere"
        ) from error


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        found = f"only {names[0]}/" if names else "no folder"
        raise DataError(f"{folder} has {found} in it, where at least two classes are wanted: {_LAYOUT}")
    return names


def _test_files(data_dir: Path, names: list[str]) -> LabelledFiles | None:
    folder = next((data_dir / part for part in ("test", "val") if (data_dir / part).is_dir()), None)
    if folder is None:
        return None
    classes = _class_names(folder)
    if untrained := sorted(set(classes) - set(names)):
        raise DataError(
            f"the class {folder / untrained[0]} has no training images: add "
            f"{data_dir / 'train' / untrained[0]}, or take it away"
        )
    test = [(file, names.index(name)) for name in classes for file in image_files(folder / name)]
    if not test:
        raise DataError(f"{folder} holds no image: put some there, or delete it")
    return test
