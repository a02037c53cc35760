"""What a run is, its folder, and the run itself. Importing this package does not import torch."""

from dctps.experiments.config import RunConfig
from dctps.experiments.methods import METHODS, Method

__all__ = ["METHODS", "Method", "RunConfig"]
