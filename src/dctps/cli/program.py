"""Read the flags, perform the command, say in one line what cannot be done.

torch is imported once the flags are read, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from dctps.cli.bench import Bench
from dctps.cli.common import FIRST, USAGE_ERROR, print_note
from dctps.cli.evaluate import Evaluate
from dctps.cli.intrinsic import Intrinsic
from dctps.cli.recipes import Recipes
from dctps.cli.report import Report
from dctps.cli.sweep import Sweep
from dctps.cli.train import Train
from dctps.experiments.config import RunConfig
from dctps.experiments.recipes import build_recipe
from dctps.experiments.signals import Stopped, sigterm_raises

_INTERRUPTED = 130
_STOPPED = "stopped; the same command begins again, a training run where it was last saved"

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
            return command.perform(argv)
        if isinstance(command, Train) and command.recipe is not None:
            command = _with_recipe(command.recipe, argv)
    except ValueError as error:
        return _refuse(error)
    try:
        with sigterm_raises(_STOPPED):
            return _perform(command, argv)
    except Stopped as stopped:
        print_note(str(stopped))
        return stopped.status
    except KeyboardInterrupt:
        print_note(_STOPPED)
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
        return command.perform(argv)
    except (PeerError, PeerLost):
        return USAGE_ERROR  # the process that failed says why
    except (ValueError, OSError, DataError, TrainingError) as error:
        if isinstance(error, TrainingError) and not FIRST:  # all processes see the same loss
            return USAGE_ERROR
        return _refuse(error)


def _refuse(error: Exception) -> int:
    # One line, whatever the message was laid out for.
    print("dctps: error:", " ".join(str(error).split()), file=sys.stderr)
    return USAGE_ERROR
