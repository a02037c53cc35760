"""Flags of `dctps train` laid over a configuration: a recipe's, or that of a run which goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dctps.cli.parsing import parse
from dctps.cli.train import Train
from dctps.experiments.config import RunConfig, differences
from dctps.experiments.continued import check_continued, continuing, is_finished
from dctps.experiments.recipes import build_recipe
from dctps.experiments.records import read_config
from dctps.experiments.unused import unused


def with_base(command: Train, argv: Sequence[str]) -> Train:
    """The command that the words `argv` after `train` are over its recipe, or the run that it resumes.

    Raises:
        ValueError: a recipe or run that is not there, both, or flags that do not fit the run's network.
    """
    if command.recipe is not None and command.resume is not None:
        raise ValueError("--recipe and --resume each say what the run is: leave one of the two out")
    if command.recipe is not None:
        return _with_recipe(command.recipe, argv)
    return command if command.resume is None else _resumed(command.resume, argv)


def _with_recipe(name: str, argv: Sequence[str]) -> Train:
    """The flags over the recipe of the model, the data set and the method that they name."""
    # First over the recipe's own three, so that one that is not named is the recipe's.
    named = _over(build_recipe(name), argv).run
    return _over(build_recipe(name, model=named.model, dataset=named.dataset, method=named.method), argv)


def _resumed(folder: Path, argv: Sequence[str]) -> Train:
    """An unfinished run where it was last saved, or further epochs of a finished one as a run of its own."""
    if is_finished(folder):
        command = _over(continuing(folder), argv)
        check_continued(folder, command.run)
        return command
    base = read_config(folder)
    command = _over(base, argv)
    if changed := differences(command.run, base):
        name, (here, there) = next(iter(changed.items()))
        raise ValueError(
            f"the run in {folder} is not finished, and has {name} {there}, not {here}: leave it out and let "
            f"it finish first"
        )
    return replace(command, output=replace(command.output, out=command.output.out or folder))


def _over(base: RunConfig, argv: Sequence[str]) -> Train:
    read: Callable[..., Train] = parse
    command = read(Train, argv, prog="dctps train", default=Train(run=base))
    # A flag may leave a choice of the base without effect, which is no mistake of the person.
    idle = unused(command.run).keys() - differences(command.run, base).keys()
    kept = {field: value for field, value in vars(command.run).items() if field not in idle}
    return replace(command, run=RunConfig(**kept))
