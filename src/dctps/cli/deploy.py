"""`dctps export` and `dctps predict`: what a finished run is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Export:
    """Write the network of a finished run as ONNX, or as a program for torch.export.load.

    It takes the bytes of images, any number at a time, and normalises them itself. The file is written once
    it has given the network's own outputs.
    """

    folder: Positional[Path]
    """the run folder"""
    format: Literal["onnx", "program"] = "onnx"
    """of the file; onnx needs the extra onnx"""
    output: Path | None = None
    """the file (None: model.onnx or model.pt2 in the run folder)"""
    which: Literal["last", "best"] = "last"
    """the network after the last epoch, or after the best on validation"""
    merge: bool = False
    """with plain dense layers: often faster in other runtimes, larger where layers are large"""

    def perform(self, argv: Sequence[str]) -> int:
        """Export, and print the file."""
        from dctps.experiments.exporting import SUFFIXES, export_network  # noqa: PLC0415
        from dctps.experiments.trained import load_run  # noqa: PLC0415

        model = load_run(self.folder, which=self.which)
        output = self.output or self.folder / f"model{SUFFIXES[self.format]}"
        difference = export_network(model, output, kind=self.format, merge=self.merge)
        size = output.stat().st_size
        print(f"{output}: {size:,} bytes, outputs within {difference:.0e} of the network's")
        return 0


@dataclass(frozen=True)
class Predict:
    """Classify image files by the network of a finished run.

    Prints each file, the class, and its probability.
    """

    folder: Positional[Path]
    """the run folder"""
    images: Positional[tuple[Path, ...]]
    """image files, or folders of them"""
    top: int = 1
    """how many classes of each image"""
    which: Literal["last", "best"] = "last"
    """the network after the last epoch, or after the best on validation"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is a GPU where there is one"""

    def perform(self, argv: Sequence[str]) -> int:
        """Print a line for each image."""
        from dctps.experiments.trained import load_run, predict  # noqa: PLC0415

        if not self.images:
            raise ValueError("give image files, or a folder of them, behind the run folder")
        model = load_run(self.folder, which=self.which, device=self.device)
        for found in predict(model, self.images, top=self.top):
            pairs = zip(found.classes, found.probabilities, strict=True)
            print(found.file, *(f"{name} {share:.4f}" for name, share in pairs), sep="\t", flush=True)
        return 0
