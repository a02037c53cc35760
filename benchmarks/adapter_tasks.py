"""Two pretrained networks and what they are adapted to, for `benchmarks/adapters.py`."""

from __future__ import annotations

import copy
import functools
import math
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.data import batches as image_batches
from dctps.data import load_dataset
from dctps.data.tensors import Dataset, ImageTensors
from dctps.models import build_model

Batch = Any


class Task(Protocol):
    """What an adapter is measured on; `score` is better the larger it is."""

    name: str
    targets: str | list[str]
    saved: list[str]
    rates: tuple[float, ...]
    r: int
    settings: dict[str, Any]

    def base(self, seed: int) -> nn.Module:
        """The pretrained network, ready to be adapted."""

    def batches(self, seed: int) -> Iterator[Batch]:
        """All that a run trains on."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """In nats."""

    def scores(self, model: nn.Module) -> dict[str, float]:
        """By part of the data: `validation` and `test`."""


class Images:
    """ResNet-20 trained on CIFAR-10 at 16 x 16 pixels, adapted to classes of CIFAR-100 with a new head."""

    name = "images"
    targets = r"stem\.0|.*branch\.[03]"  # the convolutions
    saved: ClassVar = ["classifier"]
    rates = (3e-3, 1e-2, 3e-2)
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


class Text:
    """A small Llama trained on bytes of Python's source, adapted to its manual's prose."""

    name = "text"
    targets: ClassVar = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    saved: ClassVar[list[str]] = []
    rates = (3e-3, 1e-2, 3e-2)
    r = 4
    settings: ClassVar = {
        "layers": 4, "width": 128, "context": 128, "batch": 16, "steps": 700, "adapted_steps": 120,
        "adapted_batch": 8, "validation_sequences": 64, "test_sequences": 192,
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / "llama-bytes.pt"

    def _network(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 (heavy)

        s = self.settings
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=s["width"],
            intermediate_size=3 * s["width"],
            num_hidden_layers=s["layers"],
            num_attention_heads=4,
            max_position_embeddings=s["context"],
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config)

    def pretrained(self) -> nn.Module:
        """Trained here on first use, then read from a file."""
        model = self._network()
        if self.path.exists():
            model.load_state_dict(torch.load(self.path))
            return model
        s, generator = self.settings, torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=s["steps"], pct_start=0.1)
        for step in range(s["steps"]):
            optimizer.zero_grad()
            loss = self.loss(model, _drawn(_source(), s["batch"], s["context"], generator))
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 99:
                print(f"pretraining text: step {step + 1}, loss {loss.item():.3f}", flush=True)
        torch.save(model.state_dict(), self.path)
        return model

    def base_score(self) -> float:
        """Minus the bits for a byte of the prose before anything is adapted."""
        return self.scores(self.pretrained())["test"]

    def base(self, seed: int) -> nn.Module:
        """A copy."""
        return copy.deepcopy(self.pretrained())

    def batches(self, seed: int) -> Iterator[Batch]:
        """Windows of the prose, the last fifth of which is kept for validation and test."""
        s, generator = self.settings, torch.Generator().manual_seed(seed)
        text = _prose()[: len(_prose()) * 4 // 5]
        for _ in range(s["adapted_steps"]):
            yield _drawn(text, s["adapted_batch"], s["context"], generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the next byte in nats."""
        logits = model(input_ids=batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        """Minus the bits for a byte."""
        model.eval()
        s, text = self.settings, _prose()[len(_prose()) * 4 // 5 :]
        generator = torch.Generator().manual_seed(1)
        found = {}
        for part in ("validation", "test"):
            half = text[: len(text) // 3] if part == "validation" else text[len(text) // 3 :]
            batches = [_drawn(half, 32, s["context"], generator) for _ in range(s[f"{part}_sequences"] // 32)]
            found[part] = (
                -sum(self.loss(model, batch).item() for batch in batches) / len(batches) / math.log(2)
            )
        return found


TASKS = {"images": Images, "text": Text}


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


@functools.cache
def _source() -> Tensor:
    """About three million bytes of the standard library's modules, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _bytes(b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))


@functools.cache
def _prose() -> Tensor:
    """The half million bytes of Python's manual that come with it."""
    topics = pydoc_data.topics.topics
    return _bytes("\n".join(topics[name] for name in sorted(topics)).encode())


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _drawn(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[starts + torch.arange(length)].long()
