"""A run, from a configuration to a finished folder, and the same network again from that folder."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import dctps
from dctps.checkpoint import load_state
from dctps.data import load_dataset
from dctps.experiments.config import RunConfig, resolve, run_name
from dctps.experiments.folder import BEST, LAST, Record, RunFolder, read_config, read_summary
from dctps.experiments.session import Session
from dctps.training import Metrics


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that is given no folder: `runs/` and `run_name(config)`."""
    return Path("runs") / run_name(config)


def run(
    config: RunConfig,
    *,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = False,
    on_epoch: Callable[[Record], None] | None = None,
) -> Record:
    """Train the network of `config` and write its run folder; a finished run is left as it is.

    The caller's random state and number of threads are afterwards as before.

    Args:
        config: what to run.
        out: the run folder (None: `default_folder(config)`).
        data_dir: folder of the data files (None: the environment variable DCTPS_DATA).
        download: fetch missing data files into `data_dir`.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, or `"auto"`: a GPU where there is one.
        threads: of the CPU (None: torch's choice). Runs repeat bit for bit on one machine at one number.
        progress: show a bar for each epoch where standard error is a terminal.
        on_epoch: called with each epoch's record, as in metrics.jsonl.

    Returns:
        The summary, as in summary.json.

    Raises:
        ValueError: a bad choice in `config`, `device` or `threads`; as `RunFolderError`, a folder of no use.
        DataError: the data files are missing or damaged.
        TrainingError: the loss is not finite.
    """
    config = resolve(config)
    folder = RunFolder(default_folder(config) if out is None else Path(out), config)
    summary = folder.finished()
    if summary is not None:
        return summary
    with _torch_settings(device, threads, config.seed) as place:
        session = Session(config, load_dataset(config.dataset, data_dir, download=download), place)
        # The folder comes last: a mistake found before here leaves nothing behind.
        with folder.writing():
            records: list[Record] = []
            best: Record | None = None
            for epoch in range(1, config.epochs + 1):
                record = session.train_epoch(epoch, progress=progress)
                records.append(record)
                folder.save(session.model, LAST, epoch)
                if record["val_accuracy"] is not None and (
                    best is None or record["val_accuracy"] > best["val_accuracy"]
                ):
                    best = record
                    folder.save(session.model, BEST, epoch)
                folder.append(record)
                if on_epoch is not None:
                    on_epoch(record)
            folder.finish(_summary(session.model, records, best, place))
    # Read back, so that the first call and one that finds the run finished return the same.
    return read_summary(folder.path)


def evaluate_run(
    path: Path | str,
    *,
    data_dir: Path | str | None = None,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Metrics]:
    """The test metrics of a finished run's networks: `"last"`, and `"best"` where it had a validation set.

    Args:
        path: the run folder.
        data_dir: as for `run`.
        download: as for `run`.
        device: as for `run`.
        threads: as for `run`.

    Raises:
        ValueError: no finished run, or a damaged checkpoint.
        DataError: the data files are missing or damaged.
    """
    path = Path(path)
    config = resolve(read_config(path))
    summary = read_summary(path)
    with _torch_settings(device, threads, config.seed) as place:
        session = Session(config, load_dataset(config.dataset, data_dir, download=download), place)
        found = {}
        for name, file in (("last", LAST), ("best", BEST)):
            if summary[f"{name}_epoch"] is not None:
                load_state(session.model, path / file)
                found[name] = session.test()
        return found


def _summary(model: nn.Module, records: list[Record], best: Record | None, device: torch.device) -> Record:
    last = records[-1]
    chosen = best or {"epoch": None, "val_accuracy": None, "test_accuracy": None}
    return {
        "last_epoch": last["epoch"],
        "last_test_accuracy": last["test_accuracy"],
        "best_epoch": chosen["epoch"],
        "best_val_accuracy": chosen["val_accuracy"],
        "best_test_accuracy": chosen["test_accuracy"],
        "report": dctps.report(model).to_dict(),
        "seconds": sum(record["seconds"] for record in records),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("dctps", "torch", "numpy")},
        },
    }


@contextmanager
def _torch_settings(device: str, threads: int | None, seed: int) -> Iterator[torch.device]:
    """Number of threads, global seed and flushing of subnormals within, the caller's after; gives the device.

    Raises:
        ValueError: no such device, or a number of threads that cannot be.
    """
    place = _device(device)
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    before, flushed = torch.get_num_threads(), _flushes_denormals()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(before if threads is None else threads)
        # A collapsed network decays into subnormal numbers, on which a CPU is ten times slower.
        torch.set_flush_denormal(True)
        try:
            yield place
        finally:
            torch.set_num_threads(before)
            torch.set_flush_denormal(flushed)


def _flushes_denormals() -> bool:
    return float(torch.tensor([1e-310], dtype=torch.float64) + 0.0) == 0.0


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: choose cpu, cuda, cuda:0, ... or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device {name!r} is not supported: choose cpu, cuda or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {name!r} ({torch.cuda.device_count()} GPUs found): choose --device cpu"
        )
    return device
