"""What `dctps bench` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dctps.product.rule import Backend

Part = Literal["linear", "conv", "layers", "network", "latency", "transform", "memory"]
Cell = dict[str, Any]

# The images of a batch of each network.
BATCHES = {"vgg19": 32, "resnet50": 16, "mobilenetv2": 32, "lenet5": 128}


@dataclass(frozen=True)
class Plan:
    """What to measure; None is the part's own choice.

    Attributes:
        part: which.
        sizes: widths of linear layers, lengths of transforms, input channels of convolutions.
        densities: of the layers; networks have the first.
        nnz_per_row: of linear layers, in place of densities.
        offsets: to measure.
        backends: paths of linear layers and convolutions.
        models: by name.
        batch: rows or images.
        seconds: for each cell, unless five rounds take longer.
        threads: of the CPU.
        device: `"cpu"` or `"cuda"`.
    """

    part: Part
    sizes: tuple[int, ...] | None = None
    densities: tuple[float, ...] | None = None
    nnz_per_row: int | None = None
    offsets: tuple[str, ...] = ("dct", "sdct")
    backends: tuple[Backend, ...] = ("auto",)
    models: tuple[str, ...] = tuple(BATCHES)
    batch: int | None = None
    seconds: float = 1.0
    threads: int = 2
    device: str = "cpu"

    @property
    def density(self) -> float:
        """Of networks."""
        return (self.densities or (0.001,))[0]
