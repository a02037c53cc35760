"""A run folder held for writing, beside its data: what is measured of a run goes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dctps.data import Dataset
from dctps.experiments.folder import RunFolder
from dctps.experiments.records import check_data
from dctps.experiments.run import data_of
from dctps.experiments.settings import torch_settings


@contextmanager
def opened(
    folder: RunFolder, *, data_dir: Path | str | None, device: str, threads: int | None
) -> Iterator[tuple[torch.device, Dataset]]:
    """Hold the folder within, begun where it was not, under the settings of its run; gives device and data.

    Raises:
        ValueError: as for `torch_settings`; as `RunFolderError`, a folder of no use, or one on other data.
        DataError: the data files are missing or damaged.
    """
    config = folder.config
    with torch_settings(device, threads, config.seed) as place, folder.writing():
        dataset = data_of(config, data_dir, False, None)
        if folder.finished() is None:
            folder.begin(dataset.to_dict())
        else:
            check_data(folder.path, dataset.to_dict())
        yield place, dataset
