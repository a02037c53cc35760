"""Train LeNet-5 under (epsilon, delta) with Opacus: an offset, and 550 numbers that get noise."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dctps
from dctps.data import ImageTensors, load_dataset
from dctps.models import build_model
from dctps.private import noise_report, per_sample


@dataclass
class Choices:
    """Of a private run.

    Attributes:
        dataset: "digits", or "cifar10" in DCTPS_DATA.
        density: of the weights that train; 1 for the dense network.
        alpha: 1 to train the offsets' factors too; LeNet-5 was better with fixed ones.
        epsilon: with `delta`, what all steps together may reveal of one image.
        delta: well below 1 / images.
        clipping: C, which the norm of each image's gradient is clipped to.
        batch_size: expected; each image is in a batch by a draw of its own.
        epochs: passes over as many images.
        lr: of SGD with momentum 0.9.
        seed: of the network and the draws.
    """

    dataset: str = "digits"
    density: float = 0.005
    alpha: int = 0
    epsilon: float = 8.0
    delta: float = 1e-5
    clipping: float = 1.0
    batch_size: int = 512
    epochs: int = 10
    lr: float = 0.5
    seed: int = 0


def tensors(data: ImageTensors) -> TensorDataset:
    """Images about 0. Their own mean and deviation would reveal something; these constants do not."""
    return TensorDataset((data.images / 255 - 0.5) / 0.25, data.labels)


def train(choices: Choices, data: TensorDataset, classes: int):  # type: ignore[no-untyped-def]
    """The network, its private optimizer, and the epsilon that was spent."""
    torch.manual_seed(choices.seed)
    model: nn.Module = build_model("lenet5", classes, data.tensors[0].shape[1])
    if choices.density < 1:
        dctps.sparsify_(model, choices.density, alpha_trainable=bool(choices.alpha), seed=choices.seed)
    engine = PrivacyEngine()
    wrapped, optimizer, loader = engine.make_private_with_epsilon(
        module=per_sample(model),
        optimizer=torch.optim.SGD(model.parameters(), choices.lr, momentum=0.9),
        data_loader=DataLoader(data, choices.batch_size),
        target_epsilon=choices.epsilon,
        target_delta=choices.delta,
        epochs=choices.epochs,
        max_grad_norm=choices.clipping,
    )
    for _ in range(choices.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(wrapped(images), labels).backward()
            optimizer.step()
    return model, optimizer, engine.get_epsilon(choices.delta)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """The share of the images that are classified correctly."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(data, 1000))
    return right / len(data)


def main() -> None:
    """Train once, then print what was spent and what it was worth."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in vars(Choices()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    choices = Choices(**vars(parser.parse_args()))
    for harmless in ("Secure RNG", "Full backward hook", "Optimal order"):  # of Opacus, in every run
        warnings.filterwarnings("ignore", harmless)
    found = load_dataset(choices.dataset)
    model, optimizer, spent = train(choices, tensors(found.train), found.classes)
    print(f"spent epsilon {spent:.2f} at delta {choices.delta:g}")
    print(f"test accuracy {accuracy(model, tensors(found.test)):.1%}")
    print(noise_report(model, optimizer))


if __name__ == "__main__":
    main()
