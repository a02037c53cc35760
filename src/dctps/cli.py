"""The command line: read the flags, call `dctps.experiments`, print.

torch is imported once the flags are read, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, subcommand

from dctps.experiments.config import RunConfig, resolve, to_dict
from dctps.experiments.recipes import build_recipe, list_recipes, recipe_text
from dctps.experiments.signals import Stopped, sigterm_raises

_USAGE_ERROR = 2
_FIRST = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all
_INTERRUPTED = 130
_STOPPED = "stopped; the same command begins again, a training run where it was last saved"


@dataclass(frozen=True)
class Machine:
    """Where it runs; no part of what the run is."""

    data_dir: Path | None = None
    """folder (or .npz file) of the data (None: the environment variable DCTPS_DATA)"""
    download: bool = False
    """fetch missing data files into the data folder"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is a GPU where there is one"""
    threads: int | None = None
    """CPU threads (None: torch's choice); runs repeat bit for bit at one number of threads"""


@dataclass(frozen=True)
class Output:
    """What is written and shown."""

    out: Path | None = None
    """the run folder (None: runs/ and a name made of the run's choices)"""
    progress: bool = True
    """show a bar on a terminal"""
    checkpoint_interval: int | None = None
    """steps between two saves within an epoch (None: the run is saved at each epoch's end)"""


@dataclass(frozen=True)
class Train:
    """Train one network and write its run folder.

    A finished run is not run again. One that was cut short goes on where it was last saved.
    """

    recipe: str | None = None
    """what the flags below are where they are not given: short, paper, force, ... (see `dctps recipes`)"""
    run: RunConfig = field(default_factory=RunConfig)
    tune: bool = False
    """measure the paths of each layer first, take the fastest, and write the choices to backends.json"""
    backends: Path | None = None
    """the backends.json of another run, to take its choices"""
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class Sweep:
    """Train every combination of a grid, each run in a folder of its own.

    Finished runs are skipped, broken ones go on, and where one fails the others still run. For example
    `dctps sweep method=dctps,dense density=0.05,0.01 seed=0,1,2 epochs=5 --workers 2`.
    """

    fields: Positional[tuple[str, ...]] = ()
    """flags of `dctps train` as name=value, or name=value,value,... to take each in turn"""
    file: Path | None = None
    """a sweep file (TOML), whose grids these fields complete"""
    out: Path = Path("runs")
    """folder of the run folders"""
    workers: int = 1
    """runs at a time, each in a process of its own; several may share a GPU"""
    preview: bool = False
    """only say how many runs are left and how long they will take"""
    progress: bool = True
    """show a bar on a terminal"""
    machine: Machine = field(default_factory=lambda: Machine(threads=1))


@dataclass(frozen=True)
class Evaluate:
    """Test the saved networks of a finished run again."""

    folder: Positional[Path]
    """the run folder"""
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Report:
    """Count weights, trained numbers and bytes, of a run folder or of a network that the flags describe.

    With `--backend` say instead which path each layer's calls take on this machine, at `--batch-size`.

    No data files are read and nothing is trained.
    """

    folder: Positional[Path | None] = None
    """a run folder; what the network is then comes from there, not from the flags below"""
    backend: bool = False
    """say which path each layer takes, dense, transform or native, and what the rule estimates of each"""
    run: RunConfig = field(default_factory=RunConfig)
    classes: int | None = None
    """outputs of the network (None: those of the data set)"""
    in_channels: int | None = None
    """channels of the images (None: those of the data set)"""


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or show one with all that it decides."""

    name: Positional[str | None] = None
    """the recipe to show"""
    model: str | None = None
    """the network that it is for (None: the recipe's own)"""
    dataset: str | None = None
    """the data set that it is for (None: the recipe's own)"""
    method: str | None = None
    """the method that it is for (None: the recipe's own)"""


@dataclass(frozen=True)
class Intrinsic:
    """Search the fewest dimensions at which a hyperplane reaches a share of the dense network's accuracy.

    Trains many networks, one folder each, with intrinsic.json beside them; finished ones are used again.
    """

    run: RunConfig = field(default_factory=lambda: RunConfig(method="hyperplane"))
    share: float = 0.9
    """of the dense accuracy, in (0, 1]"""
    dense_accuracy: float | None = None
    """to compare with, as a fraction (None: trains dense networks)"""
    seeds: tuple[int, ...] | None = None
    """of the runs, whose mean counts (None: the seed)"""
    ratio: float = 1.1
    """largest ratio of the dimensions found to a number that is too small"""
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class Bench:
    """Time layers and networks on the CPU beside dense PyTorch's, in interleaved rounds.

    linear, conv: forward and backward of single layers; layers: those of networks at several densities;
    network: training steps and forward passes; latency: a single image; transform: the DCT alone;
    memory: what a training step takes above its activations.
    """

    part: Positional[Literal["linear", "conv", "layers", "network", "latency", "transform", "memory"]]
    """what to measure"""
    sizes: tuple[int, ...] | None = None
    """widths of linear layers, lengths of transforms, input channels of convolutions"""
    densities: tuple[float, ...] | None = None
    """of the layers; networks have the first"""
    nnz_per_row: int | None = None
    """of linear layers, in place of densities"""
    offsets: tuple[str, ...] = ("dct", "sdct")
    """to measure"""
    backends: tuple[Literal["auto", "dense", "transform", "native"], ...] = ("auto",)
    """paths of linear layers and convolutions"""
    models: tuple[str, ...] = ("vgg19", "resnet50", "mobilenetv2", "lenet5")
    """networks"""
    batch: int | None = None
    """rows or images (None: 256 rows, 32 images, of resnet50 16, of lenet5 128)"""
    seconds: float = 1.0
    """for each cell, unless five rounds take longer"""
    threads: int = 2
    """CPU threads"""
    json: Path | None = None
    """file to add the results to, with hardware, versions and commit"""


_Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Sweep, subcommand("sweep")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Recipes, subcommand("recipes")]
    | Annotated[Intrinsic, subcommand("intrinsic")]
    | Annotated[Bench, subcommand("bench")]
)
_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments (None: the process's).

    Returns:
        The exit status: 0, 2 after a message for input that cannot be used, 130 after Ctrl-C, 143 after
        SIGTERM.

    Raises:
        SystemExit: after `--help` (status 0), or flags that do not parse (status 2).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    command = tyro.cli(
        _Command,
        prog="dctps",
        description="Train and inspect networks whose layers are alpha * D + S: a dense offset that is never "
        "stored, and a very sparse trained matrix.",
        args=argv,
        config=_STYLE,
    )
    try:
        if isinstance(command, Recipes):
            _recipes(command)
            return 0
        if isinstance(command, Train) and command.recipe is not None:
            command = _with_recipe(command.recipe, argv)
    except ValueError as error:
        return _refuse(error)
    try:
        with sigterm_raises(_STOPPED):
            return _perform(command, argv)
    except Stopped as stopped:
        _print_note(str(stopped))
        return stopped.status
    except KeyboardInterrupt:
        _print_note(_STOPPED)
        return _INTERRUPTED


def _with_recipe(name: str, argv: Sequence[str]) -> Train:
    """The flags over the recipe of the model, the data set and the method that they name."""

    def read(run: RunConfig) -> Train:
        return tyro.cli(Train, prog="dctps train", args=argv[1:], default=Train(run=run), config=_STYLE)

    # First over the recipe's own three, so that one that is not named is the recipe's.
    named = read(build_recipe(name)).run
    return read(build_recipe(name, model=named.model, dataset=named.dataset, method=named.method))


def _perform(command: _Command, argv: Sequence[str]) -> int:
    from dctps.data import DataError  # noqa: PLC0415
    from dctps.training import PeerError, PeerLost, TrainingError  # noqa: PLC0415

    try:
        match command:
            case Train():
                _train(command)
            case Sweep():
                return _sweep(command)
            case Evaluate():
                _evaluate(command)
            case Report():
                _report(command)
            case Intrinsic():
                _intrinsic(command)
            case Bench():
                _bench(command, argv)
    except (PeerError, PeerLost):
        return _USAGE_ERROR  # the process that failed says why
    except (ValueError, OSError, DataError, TrainingError) as error:
        if isinstance(error, TrainingError) and not _FIRST:  # all processes see the same loss
            return _USAGE_ERROR
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    # One line, whatever the message was laid out for.
    print("dctps: error:", " ".join(str(error).split()), file=sys.stderr)
    return _USAGE_ERROR


def _recipes(command: Recipes) -> None:
    if command.name is None:
        width = max(map(len, list_recipes()))
        for name in list_recipes():
            print(f"{name:<{width}}  {recipe_text(name)[0]}")
        return
    config = resolve(
        build_recipe(command.name, model=command.model, dataset=command.dataset, method=command.method)
    )
    print("\n".join(recipe_text(command.name)), end="\n\n")
    fields = {name: value for name, value in to_dict(config).items() if value is not None}
    width = max(map(len, fields))
    for name, value in fields.items():
        shown = " ".join(f"{share:.6g}" for share in value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {shown}")


def _train(command: Train) -> None:
    from dctps.experiments.run import default_folder, run  # noqa: PLC0415

    out = command.output.out or default_folder(command.run)
    summary = run(
        command.run,
        out=out,
        progress=command.output.progress and _FIRST,
        on_epoch=_print_epoch,
        on_note=_print_note,
        checkpoint_interval=command.output.checkpoint_interval,
        tune=command.tune,
        backends=command.backends,
        **_place(command.machine),
    )
    if not _FIRST:
        return
    print(f"{out}: epoch {summary['last_epoch']}, test accuracy {summary['last_test_accuracy']:.4f}")
    if summary["best_epoch"] is not None:
        print(
            f"best on validation: epoch {summary['best_epoch']}, "
            f"validation {summary['best_val_accuracy']:.4f}, test {summary['best_test_accuracy']:.4f}"
        )
    counts = summary["report"]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts["trainable"].items() if count)
    print(f"trained numbers {sum(counts['trainable'].values()):,} ({kinds})")


def _sweep(command: Sweep) -> int:
    from dctps.data import load_dataset  # noqa: PLC0415
    from dctps.experiments.grid import grid, parse_fields, read_tables  # noqa: PLC0415
    from dctps.experiments.sweep import look_ahead, run_sweep, timed  # noqa: PLC0415

    shared, tables = ({}, [{}]) if command.file is None else read_tables(command.file)
    runs = grid(*tables, shared=shared | parse_fields(command.fields))
    machine, threads = command.machine, command.machine.threads or 1
    if machine.download:  # once, not by every worker
        for dataset in {config.dataset for config in runs.values()}:
            load_dataset(dataset, machine.data_dir, download=True)
    if command.preview:
        outlook = look_ahead(runs, command.out, trial=timed(machine.data_dir, machine.device, threads))
        for title, names in vars(outlook).items():
            if isinstance(names, list):
                print(*(f"{title:<9}{name}" for name in names), sep="\n", end="\n" if names else "")
        print(outlook)
        return 0
    _print_note(str(look_ahead(runs, command.out)))
    result = run_sweep(
        runs,
        command.out,
        workers=command.workers,
        threads=threads,
        data_dir=machine.data_dir,
        device=machine.device,
        progress=command.progress,
        on_note=_print_above_bar,
    )
    print(f"{len(result.finished)} of {len(runs)} runs are finished in {command.out}")
    for name, message in result.failed.items():
        print(f"dctps: error: {name}: {message}", file=sys.stderr)
    return _USAGE_ERROR if result.failed else 0


def _evaluate(command: Evaluate) -> None:
    from dctps.experiments.run import evaluate_run  # noqa: PLC0415

    for name, metrics in evaluate_run(command.folder, **_place(command.machine)).items():
        print(f"{name:<5} test accuracy {metrics.accuracy:.4f}  test loss {metrics.loss:.4f}")


def _report(command: Report) -> None:
    from dctps.experiments.network import describe, explain_network  # noqa: PLC0415
    from dctps.experiments.run import describe_run, explain_run  # noqa: PLC0415

    config, sizes = command.run, (command.classes, command.in_channels)
    if command.folder is None:
        print(explain_network(config, *sizes) if command.backend else describe(config, *sizes))
    else:
        print(explain_run(command.folder) if command.backend else describe_run(command.folder))


def _intrinsic(command: Intrinsic) -> None:
    from dctps.experiments.intrinsic import intrinsic_dimension  # noqa: PLC0415

    config, output = command.run, command.output
    found = intrinsic_dimension(
        config,
        out=output.out or Path("runs") / f"intrinsic-{config.model}-{config.dataset}",
        share=command.share,
        dense_accuracy=command.dense_accuracy,
        seeds=command.seeds,
        ratio=command.ratio,
        on_accuracy=lambda name, accuracy: print(f"{name:<8} accuracy {accuracy:.4f}", flush=True),
        progress=output.progress,
        checkpoint_interval=output.checkpoint_interval,
        **_place(command.machine),
    )
    reached = found["intrinsic_dimension"]
    dimension = f"d = {reached:,}" if reached else "no d up to this"
    print(
        f"{dimension} of {found['weights']:,} weights reaches {found['target']:.4f}, "
        f"{found['share']:g} of {found['dense_accuracy']:.4f}"
    )


def _bench(command: Bench, argv: Sequence[str]) -> None:
    from dctps.benchmarking import Plan, run_bench  # noqa: PLC0415

    fields = {name: value for name, value in vars(command).items() if name != "json"}
    run_bench(Plan(**fields), json=command.json, command=shlex.join(["dctps", *argv]), on_cell=_print_cell)


def _print_cell(cell: dict[str, Any]) -> None:
    described = {name: value for name, value in cell.items() if name != "candidates"}
    print(", ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    times = cell.get("candidates", {})
    for name, taken in times.items():
        base = next(iter(times.values()))["median_ms"]
        print(
            f"  {name:<16} {taken['median_ms']:>10.3f} ms  p10 {taken['p10_ms']:>10.3f} ms"
            f"  {base / taken['median_ms']:>7.2f}x",
            flush=True,
        )


def _place(machine: Machine) -> dict[str, Any]:
    return {
        "data_dir": machine.data_dir,
        "download": machine.download,
        "device": machine.device,
        "threads": machine.threads,
    }


def _print_note(line: str) -> None:
    if _FIRST:
        print("dctps:", line, file=sys.stderr, flush=True)


def _print_above_bar(line: str) -> None:
    from tqdm import tqdm  # noqa: PLC0415

    tqdm.write(line)


def _print_epoch(record: dict[str, Any]) -> None:
    if not _FIRST:
        return
    validation = "" if record["val_accuracy"] is None else f"  validation {record['val_accuracy']:.4f}"
    print(
        f"epoch {record['epoch']:>3}  loss {record['train_loss']:.4f}  train {record['train_accuracy']:.4f}"
        f"{validation}  test {record['test_accuracy']:.4f}  {record['seconds']:.1f} s",
        flush=True,
    )
