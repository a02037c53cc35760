"""Names for networks: a network is any callable `(classes, in_channels, image_size) -> nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from dctps.names import Registry

ModelBuilder = Callable[[int, int, int], nn.Module]
BuilderT = TypeVar("BuilderT", bound=ModelBuilder)

MODELS: Registry[ModelBuilder] = Registry("model")


def register_model(name: str) -> Callable[[BuilderT], BuilderT]:
    """Decorator: give a callable `(classes, in_channels, image_size) -> nn.Module` a name for `--model`.

    Raises:
        ValueError: the name is taken.
    """
    return MODELS.register(name)


def build_model(name: str, classes: int, in_channels: int, image_size: int = 32) -> nn.Module:
    """The network called `name`, freshly initialised from torch's global generator on the default device.

    Args:
        name: one of `list_models()`.
        classes: outputs of the last layer.
        in_channels: channels of the images.
        image_size: their height and width, in pixels.

    Raises:
        ValueError: no such network, with the nearest names; or it does not take images of that size.
    """
    return MODELS.find(name)(classes, in_channels, image_size)


def list_models() -> list[str]:
    """The registered names, sorted."""
    return sorted(MODELS)
