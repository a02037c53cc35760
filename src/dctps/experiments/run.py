"""A run, from a configuration to a finished folder, and the same network again from that folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import dctps
from dctps.data import Dataset, Description, is_published, load_dataset, resized
from dctps.experiments import records
from dctps.experiments.backends import apply_backends_, backends_of_run, choose_backends, read_backends
from dctps.experiments.config import ResolvedConfig, RunConfig, resolve, run_name
from dctps.experiments.folder import RunFolder
from dctps.experiments.levels import Levels
from dctps.experiments.network import (
    build_network,
    explain_training,
    is_scored,
    network_for_report,
    restore_network,
)
from dctps.experiments.records import BEST, LAST, Record
from dctps.experiments.saved_session import SavedSession
from dctps.experiments.session import Session
from dctps.experiments.settings import environment_of, torch_settings
from dctps.experiments.signals import deferred_signals
from dctps.experiments.unused import has_density, refuse_unused
from dctps.networks.explanation import Explanation
from dctps.reporting import Report
from dctps.training import Metrics, Processes, joined, launched


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that is given no folder: `runs/` and `run_name(config)`."""
    return Path("runs") / run_name(config)


def run(
    config: RunConfig,
    *,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    download: bool = False,
    dataset: Dataset | None = None,
    device: str = "auto",
    threads: int | None = None,
    tune: bool = False,
    backends: Path | str | None = None,
    checkpoint_interval: int | None = None,
    progress: bool = False,
    on_epoch: Callable[[Record], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    begin: Callable[[Dataset, torch.device, Processes], Session] | None = None,
) -> Record:
    """Train the network of `config` and write its run folder; a finished run is left as it is.

    A folder whose run was trained on other data is refused. A run that was cut short, at whatever moment,
    goes on from where it was last saved, and ends with the very numbers of one that was not
    (`dctps.experiments.folder` says why). Ctrl-C and SIGTERM save it and stop it between two steps. The
    caller's random state and number of threads are afterwards as before.

    Args:
        config: what to run.
        out: the run folder (None: `default_folder(config)`).
        data_dir: folder of the data files (None: the environment variable DCTPS_DATA).
        download: fetch missing data files into `data_dir`.
        dataset: called `config.dataset`, in place of the registered one (`from_arrays` makes one).
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, or `"auto"`: a GPU where there is one.
        threads: of the CPU (None: torch's choice). Runs repeat bit for bit on one machine at one number.
        tune: measure the paths of each layer and take the fastest, in place of the rule. The choices are
            written to backends.json in the folder; a run that goes on takes them from there.
        backends: such a file of another run, to take its choices.
        checkpoint_interval: steps between two saves within an epoch (None: only at its end).
        progress: show a bar for each epoch where standard error is a terminal.
        on_epoch: called with each epoch's record, as in metrics.jsonl, once the epoch is saved.
        on_note: called with a line for a person: that the run continues, or what makes it inexact.
        begin: makes the session before the first step (None: the network of `config` is new).

    Returns:
        The summary, as in summary.json.

    Raises:
        ValueError: a bad choice in `config`, `device` or `threads`, or one without any effect; as
            `RunFolderError`, a folder of no use, or of a run on other data.
        DataError: the data files are missing or damaged.
        TrainingError: the loss is not finite.
        Stopped: a `KeyboardInterrupt`, after SIGINT or SIGTERM; the run is saved.
    """
    # Loops and grids give one density to many methods, of which dense has none.
    refuse_unused(config if has_density(config.method) else replace(config, density=None))
    config = resolve(config)
    if checkpoint_interval is not None and checkpoint_interval < 1:
        raise ValueError(f"checkpoint_interval must be at least 1 step, got {checkpoint_interval}")
    if (tune or backends is not None) and config.dynamics == "imp":
        raise ValueError("imp has another network at each level: leave --tune and --backends out")
    if tune and backends is not None:
        raise ValueError("tune measures, and backends gives what was measured: leave one of the two out")
    given = None if backends is None else read_backends(Path(backends))
    folder = RunFolder(default_folder(config) if out is None else Path(out), config)

    note, follow = on_note or (lambda line: None), on_epoch or (lambda record: None)

    def loaded() -> Dataset:
        images = data_of(config, data_dir, download, dataset)
        records.check_data(folder.path, images.to_dict())
        return images

    def result() -> Record:
        # Published files are what their name says; all others may be other data than the run's by now.
        if dataset is not None or not is_published(config.dataset):
            loaded()
        return records.read_summary(folder.path)

    if not launched() and folder.finished() is not None:
        summary = result()
        folder.drop_state()
        return summary
    with torch_settings(device, threads, config.seed) as used_device, joined(used_device) as processes:
        if processes.from_first(folder.finished) is not None:
            return processes.from_first(result)
        with processes.together():
            images = loaded()
        # One process writes.
        writing = folder.writing() if processes.rank == 0 else nullcontext()
        if config.dynamics == "imp":
            train = partial(
                run, dataset=images, device=device, threads=threads, progress=progress, on_note=on_note,
                checkpoint_interval=checkpoint_interval,
            )  # fmt: skip
            with writing:
                Levels(config, folder, images, processes).complete(train, follow)
            return processes.from_first(lambda: records.read_summary(folder.path))
        with processes.together():
            if begin is None:
                # A criterion does not choose twice: on another machine it might choose otherwise.
                supports = processes.from_first(folder.saved_supports) if is_scored(config) else None
                model = None
                if config.start is not None and (there := folder.saved_supports()) is not None:
                    new = replace(config, start=None)  # all of it comes from the state
                    model = build_network(new, images.description, used_device, supports=there)
                session = Session(config, images, used_device, processes, supports=supports, model=model)
            else:
                session = begin(images, used_device, processes)
        processes.check_same(session.model)
        # The folder comes last: a mistake found before here leaves nothing behind.
        with writing, deferred_signals() as request:
            # Another process may have finished it since the first look.
            if processes.from_first(folder.finished) is None:
                paths = processes.from_first(lambda: choose_backends(folder.path, given, tune, session))
                environment = environment_of(used_device, processes, config)
                environment["backends"] = apply_backends_(session.model, paths, used_device)
                saved = SavedSession(session, folder, request, environment, processes, paths)
                saved.resume(images.to_dict(), note)
                saved.complete(checkpoint_interval, progress, follow)
        # Read back, so that the first call and one that finds the run finished return the same.
        return processes.from_first(lambda: records.read_summary(folder.path))


def evaluate_run(
    path: Path | str,
    *,
    data_dir: Path | str | None = None,
    download: bool = False,
    dataset: Dataset | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Metrics]:
    """The test metrics of a finished run's networks: `"last"`, and `"best"` where it had a validation set.

    `path` is the run folder; the other arguments are as for `run`.

    Raises:
        ValueError: no finished run, a run on other data, or a damaged checkpoint.
        DataError: the data files are missing or damaged.
    """
    path = Path(path)
    config = resolve(records.read_config(path))
    summary = records.read_summary(path)
    with torch_settings(device, threads, config.seed) as used_device:
        dataset = data_of(config, data_dir, download, dataset)
        data = dataset.to_dict()
        del data["flip"]  # it matters to training alone
        records.check_data(path, data)
        metrics = {}
        for name, file in (("last", LAST), ("best", BEST)):
            if summary[f"{name}_epoch"] is not None:
                model = restore_network(config, dataset.description, path / file, used_device)
                apply_backends_(model, backends_of_run(path), used_device)
                metrics[name] = Session(config, dataset, used_device, model=model).test()
        return metrics


def describe_run(path: Path | str) -> Report:
    """The report on the network of the run in the folder `path`; no data are read.

    Raises:
        ValueError: there is no run (`RunFolderError`), or the data decide its weights and it has no network.
    """
    return dctps.report(_network_of(Path(path))[1])


def explain_run(path: Path | str) -> Explanation:
    """Which paths the layers of the run in `path` take on this CPU; errors as for `describe_run`."""
    path = Path(path)
    config, model, data = _network_of(path)
    apply_backends_(model, backends_of_run(path), torch.device("cpu"))
    return explain_training(config, model, data)


def _network_of(path: Path) -> tuple[ResolvedConfig, nn.Module, Description]:
    config, data, shape = records.read_config(path), records.read_data(path), None
    if data is not None:
        records.need(path / records.DATA, data, "classes", "channels", "image_size")
        shape = Description(data["classes"], data["channels"], data["image_size"])
    return network_for_report(config, data=shape, file=path / LAST if (path / LAST).exists() else None)


def data_of(config: RunConfig, data_dir: Path | str | None, download: bool, given: Dataset | None) -> Dataset:
    """The data set of `config`, read, or the one given."""
    if given is None:
        return load_dataset(
            config.dataset, data_dir, download=download, image_size=config.image_size,
            data_seed=config.data_seed,
        )  # fmt: skip
    if given.name != config.dataset:
        raise ValueError(f"the data set given is called {given.name!r}, and the run's is {config.dataset!r}")
    return given if config.image_size is None else resized(given, config.image_size)
