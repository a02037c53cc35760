"""`dctps bench`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from dctps.allocator import keep_freed_memory


@dataclass(frozen=True)
class Bench:
    """Time layers and networks beside dense PyTorch's, in interleaved rounds.

    linear, conv: forward and backward of single layers; layers: those of networks at several densities;
    network: training steps and forward passes; latency: a single image; transform: the DCT alone;
    memory: what a training step takes above its activations.
    """

    part: Positional[Literal["linear", "conv", "layers", "network", "latency", "transform", "memory"]]
    """what to measure"""
    sizes: tuple[int, ...] | None = None
    """widths of linear layers, lengths of transforms, input channels of convolutions"""
    densities: tuple[float, ...] | None = None
    """of the layers; networks have the first"""
    nnz_per_row: int | None = None
    """of linear layers, in place of densities"""
    offsets: tuple[str, ...] = ("dct", "sdct")
    """to measure"""
    backends: tuple[Literal["auto", "dense", "transform", "native"], ...] = ("auto",)
    """paths of linear layers and convolutions"""
    models: tuple[str, ...] = ("vgg19", "resnet50", "mobilenetv2", "lenet5")
    """networks"""
    batch: int | None = None
    """rows or images (None: 256 rows, 32 images, of resnet50 16, of lenet5 128)"""
    seconds: float = 1.0
    """for each cell, unless five rounds take longer"""
    threads: int = 2
    """CPU threads"""
    device: str = "cpu"
    """cpu or cuda; transform and memory are of the CPU"""
    json: Path | None = None
    """file to add the results to, with hardware, versions and commit"""

    def perform(self, argv: Sequence[str]) -> int:
        """Measure, and print each cell as soon as it is measured."""
        from dctps.benchmarking import Plan, run_bench  # noqa: PLC0415

        keep_freed_memory()
        fields = {name: value for name, value in vars(self).items() if name != "json"}
        run_bench(Plan(**fields), json=self.json, command=shlex.join(["dctps", *argv]), on_cell=_print_cell)
        return 0


def _print_cell(cell: dict[str, Any]) -> None:
    described = {name: value for name, value in cell.items() if name != "candidates"}
    print(", ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    times = cell.get("candidates", {})
    for name, taken in times.items():
        base = next(iter(times.values()))["median_ms"]
        print(
            f"  {name:<16} {taken['median_ms']:>10.3f} ms  p10 {taken['p10_ms']:>10.3f} ms"
            f"  {base / taken['median_ms']:>7.2f}x",
            flush=True,
        )
