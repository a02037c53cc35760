"""A run folder held for writing, beside its data, and the JSON files of what is measured of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dctps.data import Dataset
from dctps.experiments.folder import RunFolder
from dctps.experiments.records import RunFolderError, check_data, parse_object, read_text
from dctps.experiments.run import data_of
from dctps.experiments.settings import torch_settings
from dctps.files import write_atomically


@contextmanager
def opened(
    folder: RunFolder, *, data_dir: Path | str | None, device: str, threads: int | None
) -> Iterator[tuple[torch.device, Dataset]]:
    """Hold the folder, begun where it was not, under the settings of its run; gives device and data.

    Errors are those of `torch_settings`, of a folder of no use or on other data, and of damaged data files.
    """
    config = folder.config
    with torch_settings(device, threads, config.seed) as where, folder.writing():
        dataset = data_of(config, data_dir, False, None)
        if folder.finished() is None:
            folder.begin(dataset.to_dict())
        else:
            check_data(folder.path, dataset.to_dict())
        yield where, dataset


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    write_atomically(path, (json.dumps(record) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or it is of no use."""
    try:
        return parse_object(path, read_text(path) or "")
    except RunFolderError:
        return {}
