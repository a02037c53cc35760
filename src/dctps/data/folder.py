"""A user's own images: a folder for each class."""

from __future__ import annotations

from pathlib import Path

from dctps.data.files import Labelled, image_files, load_files, reading
from dctps.data.registry import register_dataset
from dctps.data.tensors import DataError, Dataset

_LAYOUT = "a folder for each class with its images in it, or train/ and test/ (or val/) with such folders"


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

    `data_dir` holds `train/` and `test/`, or for want of that `val/`, with the classes' folders in them; or
    only `train/`, or the classes' folders themselves: then a fifth of each class, drawn by `data_seed`, is
    the test set. Three channels, or one where every image is grey; mean and deviation of the training images.

    Args:
        data_dir: the folder.
        download: not used: nobody else has these images.
        image_size: side to which every image is cropped and resized; None where they are of one size.
        data_seed: of the split.
        flip: whether a mirrored image keeps its label, as of animals and not of letters.

    Raises:
        DataError: the folder is laid out in another way, or a file in it cannot be read; with its path.
    """
    if data_dir is None:
        raise DataError(f"the data set folder needs --data-dir or DCTPS_DATA, with {_LAYOUT}")
    if not data_dir.is_dir():
        raise DataError(f"there is no folder {data_dir}: point --data-dir at {_LAYOUT}")
    with reading(data_dir):
        top = data_dir / "train"
        if not top.is_dir():
            top = data_dir
        names = _class_names(top)
        train = Labelled()
        for label, name in enumerate(names):
            files = image_files(top / name)
            if not files:
                raise DataError(f"the class folder {top / name} holds no image: put some there, or delete it")
            train.add(files, label)
        return load_files(
            "folder",
            data_dir,
            train,
            None if top == data_dir else _test(data_dir, names),
            names,
            image_size=image_size,
            flip=flip,
            data_seed=data_seed,
        )


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        found = f"only {names[0]}/" if names else "no folder"
        raise DataError(f"{folder} has {found} in it, where at least two classes are wanted: {_LAYOUT}")
    return names


def _test(data_dir: Path, names: list[str]) -> Labelled | None:
    folder = next((data_dir / part for part in ("test", "val") if (data_dir / part).is_dir()), None)
    if folder is None:
        return None
    strangers = sorted(set(_class_names(folder)) - set(names))
    if strangers:
        raise DataError(
            f"the class {folder / strangers[0]} has no training images: add "
            f"{data_dir / 'train' / strangers[0]}, or take it away"
        )
    test = Labelled()
    for label, name in enumerate(names):
        if (folder / name).is_dir():
            test.add(image_files(folder / name), label)
    if not test.paths:
        raise DataError(f"{folder} holds no image: put some there, or delete it")
    return test
