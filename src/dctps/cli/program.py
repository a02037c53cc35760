"""Read the flags, perform the command, say in one line what cannot be done.

torch is imported once the flags are read, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Any, get_args

import tyro

import dctps
from dctps.cli.bench import Bench
from dctps.cli.common import FIRST, USAGE_ERROR, print_note
from dctps.cli.deploy import Export, Predict
from dctps.cli.doctor import Doctor
from dctps.cli.figure import Figure
from dctps.cli.intrinsic import Intrinsic
from dctps.cli.laid_over import with_base
from dctps.cli.parsing import FlagError, fields_last, parse
from dctps.cli.report import Evaluate, Report
from dctps.cli.sweep import Sweep
from dctps.cli.train import Recipes, Train
from dctps.experiments.signals import Stopped, sigterm_raises
from dctps.names import lookup
from dctps.plugins import load_plugins

_INTERRUPTED = 130
_CLOSED = 141  # as after SIGPIPE
_STOPPED = "stopped; the same command begins again, a training run where it was last saved"

_FIRST = """dctps trains networks whose layers are alpha * D + S: a dense offset D that is
never stored, and a very sparse matrix S, which alone is trained.

  dctps train --density 0.05 --out runs/first   train a network on digits
  dctps sweep method=dctps,dense seed=0,1       train one for each combination
  dctps report runs                             compare them in a table
  dctps predict runs/first photo.png            use one

`dctps --help` has the other commands, `dctps COMMAND --help` all flags of one,
`dctps doctor` says what is installed."""

_DESCRIPTION = (
    "Train and use networks whose layers are alpha * D + S: a dense offset that is never stored, and a very "
    "sparse trained matrix. `dctps COMMAND --help` has the flags of a command. Every command takes --plugin "
    "NAME, a module or .py file of your own that registers offsets, methods and the like. `dctps --version` "
    "says which version this is."
)

_Command = (
    Train | Sweep | Report | Evaluate | Predict | Export | Figure | Recipes | Intrinsic | Bench | Doctor
)
_KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in get_args(_Command)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, of the arguments `argv` (None: the process's), and give its exit status.

    It is 0, or 2 after a message for input that cannot be used, 130 after Ctrl-C, 143 after SIGTERM, or 141
    where nothing reads the output any more. Without arguments it shows the commands that one needs first.
    `--help` (0) and flags that do not parse (2) raise SystemExit.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"dctps {dctps.__version__}")
        return 0
    if not argv:
        print(_FIRST)
        return 0
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has enough. What Python still holds back for them would raise again at its end.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return _CLOSED


def _main(argv: list[str]) -> int:
    try:
        argv, plugins = _without_plugins(argv)
        load_plugins(*plugins)  # before the other flags are read: a recipe may use them
        command = _read(argv)
    except FlagError as error:
        raise SystemExit(_refuse(error)) from None
    except ValueError as error:
        return _refuse(error)
    try:
        if isinstance(command, Recipes):  # which needs no torch
            return command.perform(argv)
        # An exception in the midst of this import would abort the process: until it is done SIGTERM ends it.
        import torch  # noqa: F401, PLC0415

        with sigterm_raises(_STOPPED):
            return _perform(command, argv)
    except ValueError as error:
        return _refuse(error)
    except Stopped as stopped:
        print_note(str(stopped))
        return stopped.status
    except KeyboardInterrupt:
        print_note(_STOPPED)
        return _INTERRUPTED


def _without_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--plugin NAME`, which every command takes, and the names."""
    rest: list[str] = []
    plugins: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--plugin":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("-"):
            raise FlagError("--plugin wants the name of a module or the path of a .py file, got nothing")
        plugins.append(value)
    return rest, plugins


def _read(argv: list[str]) -> _Command:
    """The command that the words describe, its flags laid over its recipe's."""
    if argv[0].startswith("-"):
        if argv[0] not in ("-h", "--help") and not argv[0].startswith("--tyro"):
            raise FlagError(f"a command comes first, such as `dctps train {argv[0]}`: see `dctps --help`")
        brief: _Command = parse(_brief(), argv, prog="dctps", description=_DESCRIPTION)
        return brief
    try:
        kind = lookup("command", _KINDS, argv[0])
    except ValueError as error:
        raise FlagError(str(error)) from None
    words = fields_last(kind, argv[1:]) if kind in (Sweep, Figure) else argv[1:]
    command: _Command = parse(kind, words, prog=f"dctps {argv[0]}")
    return with_base(command, words) if isinstance(command, Train) else command


def _brief() -> Any:
    """The union of the commands, each with the first line of what it does."""
    kinds: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, description=(kind.__doc__ or "").partition("\n")[0])]
        for name, kind in _KINDS.items()
    ]
    return reduce(operator.or_, kinds)


def _perform(command: _Command, argv: Sequence[str]) -> int:
    from dctps.data import DataError  # noqa: PLC0415
    from dctps.training import PeerError, PeerLost, TrainingError  # noqa: PLC0415

    try:
        if not isinstance(command, Doctor | Report):  # which say more of it, or need none
            _warn_of_kernels()
        return command.perform(argv)
    except BrokenPipeError:
        raise
    except (PeerError, PeerLost):
        return USAGE_ERROR  # the process that failed says why
    except (ValueError, OSError, DataError, TrainingError) as error:
        if isinstance(error, TrainingError) and not FIRST:  # all processes see the same loss
            return USAGE_ERROR
        return _refuse(error)


def _warn_of_kernels() -> None:
    """Say once that native kernels are missing; the processes that this one starts need not say it again."""
    from dctps.kernels import missing  # noqa: PLC0415

    if "DCTPS_KERNELS" not in os.environ and (problem := missing()) is not None:
        print_note(problem)
        os.environ["DCTPS_KERNELS"] = "off"


def _refuse(error: Exception) -> int:
    # One line, whatever the message was laid out for.
    print("dctps: error:", " ".join(str(error).split()), file=sys.stderr)
    return USAGE_ERROR
