"""The command line: read the flags, call `dctps.experiments`, print.

torch is imported once the flags are read, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, subcommand

from dctps.experiments.config import RunConfig
from dctps.experiments.signals import Stopped, sigterm_raises

_USAGE_ERROR = 2
_FIRST = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all
_INTERRUPTED = 130
_STOPPED = "stopped; the same command begins again, a training run where it was last saved"


@dataclass(frozen=True)
class Machine:
    """Where it runs; no part of what the run is."""

    data_dir: Path | None = None
    """folder of the data files (None: the environment variable DCTPS_DATA)"""
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

    run: RunConfig = field(default_factory=RunConfig)
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class Evaluate:
    """Test the saved networks of a finished run again."""

    folder: Positional[Path]
    """the run folder"""
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Report:
    """Count weights, trained numbers and bytes, of a run folder or of a network that the flags describe.

    No data files are read and nothing is trained.
    """

    folder: Positional[Path | None] = None
    """a run folder; the flags below are then not used"""
    run: RunConfig = field(default_factory=RunConfig)
    classes: int | None = None
    """outputs of the network (None: those of the data set)"""
    in_channels: int | None = None
    """channels of the images (None: those of the data set)"""


_Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
)


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
    command = tyro.cli(
        _Command,
        prog="dctps",
        description="Train and inspect networks whose layers are alpha * D + S: a dense offset that is never "
        "stored, and a very sparse trained matrix.",
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    try:
        with sigterm_raises(_STOPPED):
            return _perform(command)
    except Stopped as stopped:
        _print_note(str(stopped))
        return stopped.status
    except KeyboardInterrupt:
        _print_note(_STOPPED)
        return _INTERRUPTED


def _perform(command: Train | Evaluate | Report) -> int:
    from dctps.data import DataError  # noqa: PLC0415
    from dctps.training import PeerError, PeerLost, TrainingError  # noqa: PLC0415

    try:
        match command:
            case Train():
                _train(command)
            case Evaluate():
                _evaluate(command)
            case Report():
                _report(command)
    except (PeerError, PeerLost):
        return _USAGE_ERROR  # the process that failed says why
    except (ValueError, OSError, DataError, TrainingError) as error:
        if isinstance(error, TrainingError) and not _FIRST:  # all processes see the same loss
            return _USAGE_ERROR
        # One line, whatever the message was laid out for.
        print("dctps: error:", " ".join(str(error).split()), file=sys.stderr)
        return _USAGE_ERROR
    return 0


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


def _evaluate(command: Evaluate) -> None:
    from dctps.experiments.run import evaluate_run  # noqa: PLC0415

    for name, metrics in evaluate_run(command.folder, **_place(command.machine)).items():
        print(f"{name:<5} test accuracy {metrics.accuracy:.4f}  test loss {metrics.loss:.4f}")


def _report(command: Report) -> None:
    from dctps.experiments.network import describe  # noqa: PLC0415
    from dctps.experiments.run import describe_run  # noqa: PLC0415

    if command.folder is None:
        print(describe(command.run, command.classes, command.in_channels))
    else:
        print(describe_run(command.folder))


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


def _print_epoch(record: dict[str, Any]) -> None:
    if not _FIRST:
        return
    validation = "" if record["val_accuracy"] is None else f"  validation {record['val_accuracy']:.4f}"
    print(
        f"epoch {record['epoch']:>3}  loss {record['train_loss']:.4f}  train {record['train_accuracy']:.4f}"
        f"{validation}  test {record['test_accuracy']:.4f}  {record['seconds']:.1f} s",
        flush=True,
    )
