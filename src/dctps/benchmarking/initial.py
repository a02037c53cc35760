"""The network of a run before its first step, and what its Jacobian is like then and after the last.

A run folder gets initial.safetensors, the network with the support that was chosen, so that no criterion is
asked twice; initial.json, its layers and its spectrum; and trained.json, the same of model.safetensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import dctps
from dctps.benchmarking.opened import opened, read_json, write_json
from dctps.benchmarking.spectra import freeze_statistics_, spectrum
from dctps.data import Dataset, first_of, normalize
from dctps.experiments.config import ResolvedConfig, RunConfig, resolve
from dctps.experiments.folder import LAST, RunFolder
from dctps.experiments.network import restore_network
from dctps.experiments.session import Session

INITIAL = "initial.json"
TRAINED = "trained.json"
_NETWORK = "initial.safetensors"
_STATISTICS, _IMAGES = 128, 16


def examine(
    config: RunConfig,
    out: Path,
    *,
    data_dir: Path | str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Write down what the network of a run is before its first step and, where it is there, after its last.

    What is in the folder already is left, and what is damaged is made anew. The batch norms have the
    statistics of 128 training images, the same for all runs of a data set and data seed; the spectrum is of
    the first 16 of them. The arguments are those of `dctps.experiments.run.run`.

    Raises:
        ValueError: a choice in `config` that does not fit; as `RunFolderError`, a folder of no use.
        DataError: the data files are missing or damaged.
    """
    config = resolve(config)
    folder = RunFolder(out, config)
    trained = folder.finished() is not None and read_examined(out, TRAINED) is None
    if read_examined(out) is not None and not trained:
        return
    with opened(folder, data_dir=data_dir, device=device, threads=threads) as (place, dataset):
        if read_examined(out) is None:
            if not (out / _NETWORK).exists():
                folder.save_model(Session(config, dataset, place).model, _NETWORK, 0)
            write_json(out / INITIAL, _describe(config, out / _NETWORK, dataset, place))
        if trained:
            write_json(out / TRAINED, _describe(config, out / LAST, dataset, place))


def read_examined(path: Path, name: str = INITIAL) -> dict[str, Any] | None:
    """What `examine` wrote into the run folder `path`; None if it has not, or the file is of no use.

    Returns:
        `spectrum`: singular values, descending; `layers`: dicts with name, weights, nnz and offset.
    """
    found = read_json(path / name)
    try:
        layers = [{**row, "nnz": int(row["nnz"]), "name": str(row["name"])} for row in found["layers"]]
        values = [float(s) for s in found["spectrum"]]
        if not all("offset" in row for row in layers) or not all(map(math.isfinite, values)):
            return None
        return {**found, "spectrum": values, "layers": layers}
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _describe(config: ResolvedConfig, file: Path, dataset: Dataset, place: torch.device) -> dict[str, Any]:
    model = restore_network(config, dataset.description, file, place)
    batch = first_of(dataset.train, _STATISTICS, config.data_seed, "spectrum")
    images = normalize(batch.images.to(place), dataset.mean, dataset.std)
    values = spectrum(freeze_statistics_(model, images), images[:_IMAGES])
    rows = dctps.report(model).rows
    return {
        "statistics_images": len(images),
        "images": min(_IMAGES, len(images)),
        "spectrum": [float(f"{value:.6e}") for value in values],
        "layers": [
            {"name": row.name, "weights": row.weights, "nnz": row.nnz, "offset": row.offset} for row in rows
        ],
    }
