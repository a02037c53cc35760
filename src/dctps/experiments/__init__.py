"""What a run is, its folder, and the run itself. Importing this package does not import torch."""

from dctps.experiments.config import RunConfig
from dctps.experiments.methods import METHODS, Method, register_method
from dctps.experiments.recipes import build_recipe, list_recipes

__all__ = ["METHODS", "Method", "RunConfig", "build_recipe", "list_recipes", "register_method"]
