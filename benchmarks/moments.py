"""Second moments through networks at initialisation, under each offset: the mean square of layers' outputs.

    DCTPS_DATA=... python benchmarks/moments.py

FixupResNet110 and MobileNetV2 under `alpha="match"`, built on the meta device, with a dense network of the
same initialisation beside them; of MobileNetV2's depthwise layers also how alike their filters are. Writes
benchmarks/results/moments.json and, with matplotlib (the extra `figures`), docs/figures/fixup_moments.png.
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dctps
from dctps.analysis.style import dress, image, key, new_figure, style
from dctps.benchmarking.record import commit, processor
from dctps.data import load_dataset, normalize
from dctps.files import write_atomically
from dctps.models import build_model

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "moments.json"
FIGURE = ROOT / "docs" / "figures" / "fixup_moments.png"
NETWORKS = ("fixup-resnet110", "mobilenetv2")
OFFSETS = ("dense", "dct", "sdct")
SHUFFLED = "dct, filters shuffled"
IMAGES = 16
SEED = 0


def build(name: str, offset: str, seed: int, density: float) -> nn.Module:
    """The network as it begins."""
    torch.manual_seed(seed)
    if offset == "dense":
        return build_model(name, 10, 3)
    with torch.device("meta"):
        model = build_model(name, 10, 3)
    return dctps.sparsify_(model, density, offset=offset, alpha="match", seed=seed)


def shuffled(seed: int, density: float) -> nn.Module:
    """MobileNetV2 under `dct`, with the filters of each depthwise layer in a random order."""
    model = dctps.merge_(build("mobilenetv2", "dct", seed, density))
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            order = torch.randperm(len(module.weight), generator=generator)
            module.weight = nn.Parameter(module.weight.detach()[order])
    return model


def is_layer(module: nn.Module) -> bool:
    """Whether it is a linear or convolutional layer, converted or not."""
    return isinstance(module, nn.Linear | nn.Conv2d | dctps.DpSLinear | dctps.DpSConv2d)


@torch.no_grad()
def moments(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """For each layer in order: the mean square of what goes in and of what comes out."""
    rows: list[dict[str, Any]] = []

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x, y = inputs[0].double(), output.double()
        rows.append({"layer": name, "input": float(x.square().mean()), "output": float(y.square().mean())})
        if y.dim() == 4:
            channels = y.transpose(0, 1).flatten(1)
            centred = channels - channels.mean(1, keepdim=True)
            unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-30)
            # The participation ratio of the correlations' spectrum: 1 if all channels are one and the same,
            # their number if no two are alike.
            rows[-1]["channels"] = len(channels)
            rows[-1]["effective_channels"] = float(len(channels) ** 2 / (unit @ unit.T).square().sum())

    handles = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if is_layer(module)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return rows


def filters(model: nn.Module) -> list[dict[str, Any]]:
    """The banks of the depthwise layers: norms, singular values, and how alike the filters are."""
    rows = []
    for name, module in model.named_modules():
        if is_layer(module) and module.weight.dim() == 4 and module.groups > 1:
            bank = module.weight.detach().double().flatten(1)
            norms = bank.norm(dim=1)
            values = torch.linalg.svdvals(bank / norms[:, None])
            cosines = (bank / norms[:, None]) @ (bank / norms[:, None]).T
            alike = (cosines.abs().sum() - len(bank)) / (len(bank) * (len(bank) - 1))
            rows.append(
                {
                    "layer": name,
                    "filters": len(bank),
                    "smallest_norm": float(norms.min()),
                    "largest_norm": float(norms.max()),
                    "mean_abs_cosine": float(alike),
                    "condition": float(values[0] / values[-1]),
                    "rank_at_1_percent": int((values > 0.01 * values[0]).sum()),
                }
            )
    return rows


def measure(name: str, offset: str, density: float, images: Tensor) -> dict[str, Any]:
    """A network's moments and its depthwise filters."""
    made = shuffled(SEED, density) if offset == SHUFFLED else build(name, offset, SEED, density)
    model = made.train()
    return {
        "network": name,
        "offset": offset,
        "layers": moments(model, images),
        "depthwise": filters(model),
    }


def figure(result: dict[str, Any]) -> None:
    """The second moments of FixupResNet110's layers, each offset in the look of its method."""
    methods = {"dense": "dense", "dct": "dctps", "sdct": "sdctps"}
    panels = {"output": "first layer of each block: output", "input": "block's input"}
    drawn = new_figure(3.2)
    both = drawn.subplots(1, 2, sharey=True)
    for axes, (quantity, title) in zip(both, panels.items(), strict=True):
        for run in (run for run in result["runs"] if run["network"] == "fixup-resnet110"):
            rows = [row for row in run["layers"] if row["layer"].endswith("conv1")]
            look = style(methods[run["offset"]]).of_line() | {"label": run["offset"], "markersize": 4}
            line = look | {"linestyle": "--"} if run["offset"] == "sdct" else look
            blocks = range(1, len(rows) + 1)
            axes.plot(blocks, [row[quantity] for row in rows], **line, markevery=6, linewidth=1.2)
        dress(axes, title=title, x="block", y="mean square" if axes is both[0] else "")
        axes.set(yscale="log")
        for stage in (18.5, 36.5):
            axes.axvline(stage, color="0.8", linewidth=0.8, zorder=0)
    key(drawn)
    write_atomically(FIGURE, image(drawn, "png"))


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=1e-3)
    parser.add_argument("--figure-only", action="store_true", help="draw what the result file holds")
    given = parser.parse_args()
    if not given.figure_only:
        torch.set_num_threads(1)
        dataset = load_dataset("cifar10")
        images = normalize(dataset.test.images[:IMAGES], dataset.mean, dataset.std)
        cases = [(name, offset) for name in NETWORKS for offset in OFFSETS] + [("mobilenetv2", SHUFFLED)]
        runs = [measure(name, offset, given.density, images) for name, offset in cases]
        result = {
            "command": f"python benchmarks/moments.py --density {given.density}",
            "commit": commit(),
            "hardware": f"{platform.machine()}, {processor()}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "images": f"the first {IMAGES} test images of CIFAR-10",
            "seed": SEED,
            "runs": runs,
        }
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    figure(json.loads(RESULT.read_text()))


if __name__ == "__main__":
    main()
