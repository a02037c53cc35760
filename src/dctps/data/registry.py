"""Data sets by name: a registered loader is a plain callable from a folder to a `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dctps.data.tensors import DataError, Dataset
from dctps.names import Registry

Loader = Callable[[Path | None, bool], Dataset]

DATASETS: Registry[Loader] = Registry("data set")


def register_dataset(name: str) -> Callable[[Loader], Loader]:
    """Give the decorated loader a name: `loader(data_dir, download) -> Dataset`.

    Args:
        name: what `load_dataset` and `--dataset` call it.

    Raises:
        ValueError: the name is taken.
    """
    return DATASETS.register(name)


def list_datasets() -> list[str]:
    """The registered names, sorted."""
    return sorted(DATASETS)


def load_dataset(name: str, data_dir: str | Path | None = None, *, download: bool = False) -> Dataset:
    """Load a data set whole into memory, on the CPU.

    Args:
        name: one of `list_datasets()`.
        data_dir: folder of its files; None means the environment variable `DCTPS_DATA`, if set.
        download: fetch what is missing into that folder.

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
    return loader(path, download)
