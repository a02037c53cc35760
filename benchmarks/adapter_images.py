"""A ResNet-20 that is trained on CIFAR-10 and adapted to CIFAR-100, for `benchmarks/adapters.py`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.data import batches as image_batches
from dctps.data import load_dataset
from dctps.data.tensors import Dataset, ImageTensors
from dctps.models import build_model

Batch = tuple[Tensor, Tensor]


class Images:
    """ResNet-20 trained on CIFAR-10 at 16 x 16 pixels, adapted to classes of CIFAR-100 with a new head."""

    name = "images"
    targets = r"stem\.0|.*branch\.[03]"  # the convolutions
    saved: ClassVar = ["classifier"]
    r = 1
    settings: ClassVar = {
        "pixels": 16, "epochs": 6, "batch": 128, "adapted_classes": 20, "adapted_images": 3_000,
        "adapted_epochs": 3, "adapted_batch": 64, "validation_images": 1_000, "test_images": 2_000,
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / "resnet20-cifar10-16.pt"

    def pretrained(self) -> nn.Module:
        """Trained here on first use, then read from a file."""
        torch.manual_seed(0)
        model = build_model("resnet20", 10, 3, 16)
        if self.path.exists():
            model.load_state_dict(torch.load(self.path))
            return model
        data, s = _images("cifar10", 16), self.settings
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = s["epochs"] * (len(data.train) // s["batch"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps)
        generator = torch.Generator().manual_seed(0)
        for epoch in range(s["epochs"]):
            for x, y in image_batches(
                data.train, s["batch"], mean=data.mean, std=data.std, generator=generator, shuffle=True,
                augment=True, flip=True, drop_last=True,
            ):  # fmt: skip
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f"pretraining images: epoch {epoch + 1}, loss {loss.item():.3f}", flush=True)
        torch.save(model.state_dict(), self.path)
        return model

    def base_score(self) -> float:
        """Test accuracy of the pretrained network on its own task."""
        data = _images("cifar10", 16)
        return _accuracy(self.pretrained(), data, data.test, slice(0, self.settings["test_images"]))

    def base(self, seed: int) -> nn.Module:
        """A copy with a new head."""
        model = copy.deepcopy(self.pretrained())
        torch.manual_seed(seed)
        model.classifier = nn.Linear(64, self.settings["adapted_classes"])
        return model

    def batches(self, seed: int) -> Iterator[Batch]:
        """Those of all epochs, in an order and with crops that the seed draws."""
        data, s = _images("cifar100", 16), self.settings
        few = self._of_few_classes(data.train).select(torch.arange(s["adapted_images"]))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(s["adapted_epochs"]):
            yield from image_batches(
                few, s["adapted_batch"], mean=data.mean, std=data.std, generator=generator, shuffle=True,
                augment=True, flip=True, drop_last=True,
            )  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Accuracies, of training images that no run trains on and of test images."""
        data, s = _images("cifar100", 16), self.settings
        return {
            "validation": _accuracy(
                model, data, self._of_few_classes(data.train), slice(-s["validation_images"], None)
            ),
            "test": _accuracy(model, data, self._of_few_classes(data.test), slice(0, s["test_images"])),
        }

    def _of_few_classes(self, images: ImageTensors) -> ImageTensors:
        return images.select((images.labels < self.settings["adapted_classes"]).nonzero().squeeze(1))


@functools.cache
def _images(name: str, size: int) -> Dataset:
    return load_dataset(name, image_size=size)


@torch.no_grad()
def _accuracy(model: nn.Module, data: Dataset, images: Any, part: slice) -> float:
    model.eval()
    chosen = images.select(torch.arange(len(images))[part])
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in image_batches(chosen, 500, mean=data.mean, std=data.std)
    )
    return right / len(chosen)
