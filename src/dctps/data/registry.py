"""Data sets by name: a registered loader is a plain callable from a folder to a `Dataset`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dctps.data.tensors import DataError, Dataset, Description, ImageTensors, channel_statistics
from dctps.names import Registry

Loader = Callable[..., Dataset]
LoaderT = TypeVar("LoaderT", bound=Loader)

DATASETS: Registry[Loader] = Registry("data set")
DESCRIPTIONS: dict[str, Description] = {}
_PUBLISHED: set[str] = set()


def register_dataset(
    name: str, description: Description | None = None, *, published: bool = False
) -> Callable[[LoaderT], LoaderT]:
    """Give the decorated loader a name: `loader(data_dir, download) -> Dataset`.

    A loader that has parameters `image_size` (int or None) or `data_seed` (int) gets those by keyword. Images
    of one that has no `image_size` are resized once they are loaded, where that is asked for.

    Args:
        name: what `load_dataset` and `--dataset` call it.
        description: of what it loads, so that a network can be described without the files; None where that
            is not known before.
        published: whether the loader refuses all files but the published ones, so that data of this name are
            the same everywhere; a finished run on them need not read them again.

    Raises:
        ValueError: the name is taken.
    """
    register = DATASETS.register(name)

    def put(loader: LoaderT) -> LoaderT:
        register(loader)
        DESCRIPTIONS.pop(name, None)  # that of an earlier definition
        if description is not None:
            DESCRIPTIONS[name] = description
        (_PUBLISHED.add if published else _PUBLISHED.discard)(name)
        return loader

    return put


def is_published(name: str) -> bool:
    """Whether all data of that name are the same."""
    return name in _PUBLISHED


def list_datasets() -> list[str]:
    """The registered names, sorted."""
    return sorted(DATASETS)


def describe_dataset(name: str, image_size: int | None = None) -> Description | None:
    """What the data set called `name` is; None where only its files say.

    Args:
        name: one of `list_datasets()`.
        image_size: that the images are resized to (None: not at all).

    Raises:
        ValueError: no data set has that name.
    """
    DATASETS.find(name)
    found = DESCRIPTIONS.get(name)
    return found if found is None or image_size is None else replace(found, image_size=image_size)


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
    data_seed: int = 0,
) -> Dataset:
    """Load a data set whole into memory, on the CPU.

    Args:
        name: one of `list_datasets()`.
        data_dir: folder of its files; None means the environment variable `DCTPS_DATA`, if set.
        download: fetch what is missing into that folder.
        image_size: side of the square to which every image is cropped and resized; None leaves them alone.
        data_seed: of the test set's split, for data that come without one.

    Raises:
        ValueError: no data set has that name.
        DataError: its files are missing or damaged, or could not be downloaded.
    """
    loader = DATASETS.find(name)
    # An empty variable counts as unset, as shells make no easy difference.
    folder = data_dir if data_dir is not None else os.environ.get("DCTPS_DATA") or None
    try:
        path = None if folder is None else Path(folder).expanduser()
    except RuntimeError as error:
        raise DataError(f"the data folder {folder} begins with the name of no user here") from error
    options = {"image_size": image_size, "data_seed": data_seed}
    takes = inspect.signature(loader).parameters
    dataset = loader(path, download, **{key: value for key, value in options.items() if key in takes})
    return dataset if image_size is None else resized(dataset, image_size)


def resized(dataset: Dataset, image_size: int) -> Dataset:
    """The data set with every image cropped to its middle square and resized, if it is not of that size.

    Args:
        dataset: of 1 or 3 channels.
        image_size: side of the square, in pixels.

    Raises:
        DataError: another number of channels, or Pillow is not installed.
    """
    if dataset.train.images.shape[2:] == (image_size, image_size):
        return dataset
    try:
        from dctps.data.images import resize  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError("images are resized by Pillow: pip install 'dctps[images]'") from error
    parts = dataset.train, dataset.test
    train, test = (ImageTensors(resize(part.images, image_size), part.labels) for part in parts)
    mean, std = channel_statistics(train.images)
    return replace(dataset, train=train, test=test, mean=mean, std=std)
