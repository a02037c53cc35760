"""Networks as plain `nn.Module`s, each under a name."""

from dctps.models.lenet import LeNet5
from dctps.models.registry import build_model, list_models, register_model

__all__ = ["LeNet5", "build_model", "list_models", "register_model"]
