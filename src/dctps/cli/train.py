"""`dctps train`, and `dctps recipes` for the flags that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dctps.allocator import keep_freed_memory
from dctps.cli.common import FIRST, Machine, Output, print_note
from dctps.experiments.config import RunConfig, resolve, to_dict
from dctps.experiments.recipes import build_recipe, list_recipes, recipe_text
from dctps.experiments.unused import refuse_unused


@dataclass(frozen=True)
class Train:
    """Train one network and write its run folder.

    A finished run is not run again. One that was cut short goes on where it was last saved.
    """

    recipe: str | None = None
    """what the flags below are where they are not given: short, paper, force, ... (see `dctps recipes`)"""
    resume: Path | None = None
    """go on with the run in this folder, whose choices stand where no flag is given: where it was last saved,
    or, if it is finished, by --epochs more, as a run of its own that begins with its network"""
    run: RunConfig = field(default_factory=RunConfig)
    tune: bool = False
    """measure the paths of each layer first, take the fastest, and write the choices to backends.json"""
    backends: Path | None = None
    """the backends.json of another run, to take its choices"""
    tensorboard: bool = False
    """write the metrics as events for TensorBoard too"""
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)

    def perform(self, argv: Sequence[str]) -> int:
        """Train, and say how it went."""
        from dctps.experiments.continued import begin_from, is_finished  # noqa: PLC0415
        from dctps.experiments.run import default_folder, run  # noqa: PLC0415
        from dctps.experiments.tensorboard import write_events  # noqa: PLC0415

        keep_freed_memory()
        refuse_unused(self.run)
        out = self.output.out or default_folder(self.run)

        rows = 0

        def on_epoch(record: dict[str, Any] | None = None) -> None:
            nonlocal rows
            if self.tensorboard and FIRST:
                write_events(out)
            if record is not None and FIRST:
                if not rows:
                    _print_header()
                rows += 1
                _print_epoch(record)

        begin = None
        if self.resume is not None and self.resume != out and is_finished(self.resume):
            begin = partial(begin_from, self.resume, self.run)
        on_epoch()
        summary = run(
            self.run, out=out, progress=self.output.progress and FIRST, on_epoch=on_epoch,
            on_note=print_note, checkpoint_interval=self.output.checkpoint_interval, tune=self.tune,
            backends=self.backends, begin=begin, **vars(self.machine),
        )  # fmt: skip
        on_epoch()
        if not FIRST:
            return 0
        print(f"{out}: epoch {summary['last_epoch']}, test accuracy {summary['last_test_accuracy']:.4f}")
        if summary["best_epoch"] is not None:
            print(
                f"best on validation: epoch {summary['best_epoch']}, "
                f"validation {summary['best_val_accuracy']:.4f}, test {summary['best_test_accuracy']:.4f}"
            )
        counts = summary["report"]
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts["trainable"].items() if count)
        print(f"trained numbers {sum(counts['trainable'].values()):,} ({kinds})")
        print(f"all of it is in {out}; to use it: `dctps predict {out} IMAGES`, `dctps export {out}`")
        return 0


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

    def perform(self, argv: Sequence[str]) -> int:
        """Print the list or the recipe."""
        if self.name is None:
            if self.model or self.dataset or self.method:
                raise ValueError("which recipe? Give its name, such as `dctps recipes paper`, or no flags")
            width = max(map(len, list_recipes()))
            for name in list_recipes():
                print(f"{name:<{width}}  {recipe_text(name)[0]}")
            return 0
        config = resolve(build_recipe(self.name, model=self.model, dataset=self.dataset, method=self.method))
        print("\n".join(recipe_text(self.name)), end="\n\n")
        fields = {name: value for name, value in to_dict(config).items() if value not in (None, [])}
        width = max(map(len, fields))
        for name, value in fields.items():
            entries = value if isinstance(value, list) else ()
            shown = " ".join(f"{one:.6g}" if isinstance(one, float) else one for one in entries)
            print(f"{name:<{width}}  {shown or value}")
        return 0


def _print_header() -> None:
    print(f"{'epoch':>5}  {'loss':>7}  {'train':>6}  {'validation':>10}  {'test':>6}  {'seconds':>7}")


def _print_epoch(record: dict[str, Any]) -> None:
    """A row of the table; accuracies are fractions."""
    validation = "" if record["val_accuracy"] is None else f"{record['val_accuracy']:.4f}"
    print(
        f"{record['epoch']:>5}  {record['train_loss']:>7.4f}  {record['train_accuracy']:>6.4f}"
        f"  {validation:>10}  {record['test_accuracy']:>6.4f}  {record['seconds']:>7.1f}",
        flush=True,
    )
