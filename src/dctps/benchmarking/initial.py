"""The network of a run before its first step, and what its Jacobian is like then and after the last.

A run folder gets initial.safetensors, the network with the support that was chosen, so that no criterion is
asked twice; initial.json, its layers and its spectrum; and trained.json, the same of model.safetensors.

With batch norms at fixed statistics no image's outputs depend on another image, and the Jacobian of a batch
is block diagonal: its singular values are those of the images' blocks, classes x inputs each, all together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import dctps
from dctps.benchmarking.opened import opened, read_json, write_json
from dctps.data import Dataset, first_of, normalize
from dctps.experiments.config import ResolvedConfig, RunConfig, resolve
from dctps.experiments.folder import RunFolder
from dctps.experiments.network import restore_network
from dctps.experiments.records import LAST
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

    What is in the folder already is left, and what is damaged is made again. The batch norms have the
    statistics of 128 training images, the same for all runs of a data set and data seed; the spectrum is of
    the first 16 of them. The arguments and errors are those of `dctps.experiments.run.run`.
    """
    config = resolve(config)
    folder = RunFolder(out, config)
    trained = folder.finished() is not None and read_examined(out, TRAINED) is None
    if read_examined(out) is not None and not trained:
        return
    with opened(folder, data_dir=data_dir, device=device, threads=threads) as (where, dataset):
        if read_examined(out) is None:
            if not (out / _NETWORK).exists():
                folder.save_model(Session(config, dataset, where).model, _NETWORK, 0)
            write_json(out / INITIAL, _describe(config, out / _NETWORK, dataset, where))
        if trained:
            write_json(out / TRAINED, _describe(config, out / LAST, dataset, where))


def read_examined(path: Path, name: str = INITIAL) -> dict[str, Any] | None:
    """What `examine` wrote, a descending spectrum and rows of layers; None if it is missing or of no use."""
    found = read_json(path / name)
    try:
        layers = [{**row, "nnz": int(row["nnz"]), "name": str(row["name"])} for row in found["layers"]]
        values = [float(s) for s in found["spectrum"]]
        if not all("offset" in row for row in layers) or not all(map(math.isfinite, values)):
            return None
        return {**found, "spectrum": values, "layers": layers}
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _describe(config: ResolvedConfig, file: Path, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    model = restore_network(config, dataset.description, file, device)
    batch = first_of(dataset.train, _STATISTICS, config.data_seed, "spectrum")
    images = normalize(batch.images.to(device), dataset.mean, dataset.std)
    values = spectrum(freeze_statistics_(model, images), images[:_IMAGES])
    fields = ("name", "weights", "nnz", "offset")
    rows = [{name: getattr(row, name) for name in fields} for row in dctps.report(model).rows]

    return {
        "statistics_images": len(images),
        "images": min(_IMAGES, len(images)),
        "spectrum": [float(f"{value:.6e}") for value in values],
        "layers": rows,
    }


@torch.no_grad()
def freeze_statistics_(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every batch norm these images' mean and (unbiased) variance; the model comes back in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        model.train()
        model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    return model


def jacobian_blocks(model: nn.Module, images: Tensor) -> Tensor:
    """dy_c / dx of each image, (n, classes, numbers in an image): a backward pass for each output.

    The model is in eval mode and gives (n, classes); no image's outputs depend on another image.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)  # their gradients are not wanted
        x = images.detach().requires_grad_()
        y = model(x) + 0 * x.sum()  # there may be no path from the inputs
        rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in y.T]
    finally:
        for p in trained:
            p.requires_grad_()
    return torch.stack(rows, dim=1)


def spectrum(model: nn.Module, images: Tensor) -> Tensor:
    """All singular values of the Jacobian of the batch, float64, descending; exactly 0 where a block is.

    They are n * min(classes, inputs). A Jacobian that is not finite is a ValueError.
    """
    blocks = jacobian_blocks(model, images).double().cpu()
    if not blocks.isfinite().all():
        raise ValueError("the Jacobian is not finite: the network's outputs overflow")
    values: Tensor = torch.linalg.svdvals(blocks)
    return values.flatten().sort(descending=True).values
