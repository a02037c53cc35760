"""`dctps recipes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tyro.conf import Positional

from dctps.experiments.config import resolve, to_dict
from dctps.experiments.recipes import build_recipe, list_recipes, recipe_text


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
            shown = " ".join(map(_short, value)) if isinstance(value, list) else value
            print(f"{name:<{width}}  {shown}")
        return 0


def _short(entry: float | str) -> str:
    return entry if isinstance(entry, str) else f"{entry:.6g}"
