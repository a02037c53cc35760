"""Networks as plain `nn.Module`s, each under a name."""

from dctps.models.fixup import FixupResNet
from dctps.models.lenet import LeNet5
from dctps.models.mobilenet import MobileNetV2
from dctps.models.registry import build_model, list_models, register_model
from dctps.models.resnet import ResNet
from dctps.models.vgg import VGG

__all__ = [
    "VGG",
    "FixupResNet",
    "LeNet5",
    "MobileNetV2",
    "ResNet",
    "build_model",
    "list_models",
    "register_model",
]
