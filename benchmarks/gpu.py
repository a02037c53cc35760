"""Everything that is to be measured on a GPU, in one command that ends by itself.

    python benchmarks/gpu.py --seconds 540 --json benchmarks/results/gpu.json
    TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny --json tiny.json     # the same on a CPU, tiny

In this order, each part written before the next begins: the device and its ceilings; whether the kernels are
right, on memory that holds NaN; what W costs; linear layers beside dense ones; whole steps of networks,
optimizer included; memory; and training with what time is left. It needs torch and numpy, and Triton for the
kernels; data are read from DCTPS_DATA, and without them the networks train on noise, whose accuracy is left
out. Ratios are medians of calls that take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # the source tree will do

import torch
from torch import Tensor, nn

import dctps
from dctps import gpu
from dctps.data import DataError, load_dataset, normalize
from dctps.files import write_atomically
from dctps.models import build_model
from dctps.offsets import build_offset
from dctps.product.geometry import ROWS
from dctps.product.paths.factors import make_offset, make_weight, weight_gradients
from dctps.product.paths.tiles import TILES
from dctps.product.weight import Weight
from dctps.training import GraphedPass

Result = dict[str, Any]
OFFSETS = ("dct", "sdct", "hadamard", "zero")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


class Bench:
    """One device, a clock that runs out, and what was found so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.tiny, self.path = given.tiny, given.json
        self.end = time.monotonic() + given.seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.found: Result = {"command": " ".join(["python", *sys.argv]), "parts": {}}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def run(self, name: str, part: Callable[[Bench], Any], least: float) -> None:
        """One part, if so many seconds are left; its error is what was found, and the next part begins."""
        if self.left < least and not self.tiny:
            self.found["parts"][name] = f"left out: {self.left:.0f} s were left"
        else:
            begun = time.monotonic()
            try:
                result = part(self)
            except Exception as error:  # the others are still worth their time
                result = f"{type(error).__name__}: {error}"
            self.found["parts"][name] = {"seconds": round(time.monotonic() - begun, 1), "found": result}
        write_atomically(self.path, (json.dumps(self.found, indent=1) + "\n").encode())
        print(f"{name}: {self.found['parts'][name]}", flush=True)

    def milliseconds(self, calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
        """The median time of each call, in turn with the others, after three that are not counted."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        stop = time.monotonic() + (0 if self.tiny else min(seconds, max(self.left, 0)))
        rounds = 0
        while rounds < 5 or time.monotonic() < stop:
            for name, call in calls.items():
                took = self._time(call)
                if rounds >= 3:
                    taken[name].append(took)
            rounds += 1
        return {name: round(median(times), 4) for name, times in taken.items()}

    def _time(self, call: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            begun = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begun)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)


def device(bench: Bench) -> Result:
    """What it is, and how fast it copies and multiplies."""
    n = 64 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device)
    half = a.bfloat16()
    took = bench.milliseconds({"copy": a.clone, "bf16": lambda: half @ half, "float32": lambda: a @ a}, 4)
    on_gpu = bench.device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "triton": gpu.is_usable(a),
        "copied_bytes_a_second": 2e3 * a.nbytes / took["copy"],
        "bf16_operations_a_second": 2e3 * n**3 / took["bf16"],
        "float32_operations_a_second": 2e3 * n**3 / took["float32"],
    }


def weight_of(bench: Bench, name: str, shape: tuple[int, ...], density: float) -> Weight:
    """A drawn weight."""
    offset = build_offset(name, shape, seed=1, layer="layer")
    size = offset.out_features * offset.in_features
    support = torch.randperm(size)[: max(1, round(density * size))].sort().values.to(bench.device)
    values = torch.randn(len(support), device=bench.device)
    alpha = None if name == "zero" else torch.full((1,), 0.7, device=bench.device)
    return Weight(values, alpha, support, offset)


def inputs(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of the layout that W is to have."""
    x = torch.zeros(1, 1, *([1, 1] if len(shape) == 4 else []), dtype=dtype, device=bench.device)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def correct(bench: Bench) -> list[Result]:
    """The largest errors of W and its gradients against float64, over the tolerance: at most 1 is right."""
    shapes = (
        [(24, 40), (8, 6, 3, 3)]
        if bench.tiny
        else [(1024, 768), (2048, 4096), (512, 256, 3, 3), (64, 3, 3, 3)]
    )
    rows = []
    torch.use_deterministic_algorithms(True)  # memory that nobody has written holds NaN
    for name in OFFSETS:
        for shape in shapes:
            for dtype, tolerance in TOLERANCE.items():
                weight = weight_of(bench, name, shape, 0.01)
                x, exact = inputs(bench, shape, dtype), _in_double(weight)
                d = make_offset(weight, x)
                made = make_weight(weight, d, x).double()
                g = torch.randn(shape, device=bench.device, dtype=dtype)
                grad_values, grad_alpha = weight_gradients(g, weight, d, True, True)
                dense = weight.offset.to_dense(dtype=torch.float64, device=bench.device)
                worst = float((made - exact).abs().max() / (1 + exact.abs().max()))
                values = float((grad_values.double() - g.double().take(weight.support)).abs().max())
                alpha = 0.0
                if grad_alpha is not None:
                    scale = g.double().norm() * dense.norm()
                    alpha = float((grad_alpha.double() - (g.double() * dense).sum()).abs() / scale)
                row = {"weight": worst / tolerance, "values": values / tolerance, "alpha": alpha / tolerance}
                rows.append({"offset": name, "shape": shape, "dtype": str(dtype), **row})
    rows += correct_on_rows(bench)
    torch.use_deterministic_algorithms(False)
    wrong = [row for row in rows if not max(row["weight"], row["values"], row["alpha"]) <= 1]
    if wrong:
        raise ArithmeticError(f"{len(wrong)} of {len(rows)} are wrong: {wrong}")
    return rows


def correct_on_rows(bench: Bench) -> list[Result]:
    """The same of `tiles`: of the result (as `weight`), and of the gradients."""
    rows = []
    for name in OFFSETS:
        for shape in [(24, 40)] if bench.tiny else [(2048, 2048), (4096, 2048), (3072, 4096), (8192, 8192)]:
            dtype, tolerance = torch.bfloat16, 2**-5
            if not gpu.multiplies_tiles(bench.device, dtype):
                continue
            weight = weight_of(bench, name, shape, 0.001 if shape[0] > 100 else 0.1)
            x, g = (torch.randn(33, n, device=bench.device).to(dtype) for n in (shape[1], shape[0]))
            exact, of_weight = _in_double(weight), g.double().T @ x.double()
            y = TILES.forward(x, weight, ROWS, None, None).double()
            needs = True, True, weight.alpha is not None, False
            grad_x, grad_values, grad_alpha, _ = TILES.backward(g, x, weight, ROWS, None, needs)
            forward, back = x.double() @ exact.T, g.double() @ exact
            worst = max(
                float((y - forward).abs().max() / forward.abs().max()),
                float((grad_x.double() - back).abs().max() / back.abs().max()),
            )
            values = float((grad_values.double() - of_weight.take(weight.support)).abs().max())
            values /= float(of_weight.abs().max())
            alpha = 0.0
            if grad_alpha is not None:
                dense = weight.offset.to_dense(dtype=torch.float64, device=bench.device)
                scale = of_weight.norm() * dense.norm()
                alpha = float((grad_alpha.double() - (of_weight * dense).sum()).abs() / scale)
            row = {"weight": worst / tolerance, "values": values / tolerance, "alpha": alpha / tolerance}
            rows.append({"offset": name, "shape": shape, "dtype": "tiles", **row})
    return rows


def _in_double(weight: Weight) -> Tensor:
    values, alpha, support, offset = weight
    return Weight(values.double(), None if alpha is None else alpha.double(), support, offset).to_dense()


def made(bench: Bench) -> list[Result]:
    """Milliseconds for W, and for its gradients."""
    shapes = [(32, 32)] if bench.tiny else [(1024, 1024), (4096, 4096), (512, 512, 3, 3)]
    rows = []
    for name in OFFSETS:
        for shape in shapes:
            weight = weight_of(bench, name, shape, 0.001)
            x = inputs(bench, shape, torch.bfloat16)
            d = make_offset(weight, x)
            g = torch.randn(shape, device=bench.device).bfloat16()
            calls = {
                "weight": lambda w=weight, d=d, x=x: make_weight(w, d, x),
                "gradients": lambda w=weight, d=d, g=g: weight_gradients(g, w, d, True, True),
            }
            rows.append({"offset": name, "shape": shape, **bench.milliseconds(calls, 0.7)})
    return rows


def linear(bench: Bench) -> list[Result]:
    """Forward and backward of linear layers beside nn.Linear's."""
    rows = []
    sizes = [32] if bench.tiny else [1024, 2048, 4096, 8192]
    for n in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            batch = 4 if bench.tiny else 8192
            x = torch.randn(batch, n, device=bench.device, dtype=dtype, requires_grad=True)
            g = torch.randn(batch, n, device=bench.device, dtype=dtype)
            layers: dict[str, nn.Module] = {"dense": nn.Linear(n, n, bias=False)}
            for name in ("dct", "sdct"):
                layers[name] = dctps.DpSLinear(n, n, bias=False, density=0.001, offset=name)
            calls = {}
            if gpu.multiplies_tiles(bench.device, dtype):  # for the limits of the rule
                for density, backend in itertools.product(
                    (0.01,) if bench.tiny else (0.0001, 0.001, 0.01), ("tiles", "factors")
                ):
                    layer = dctps.DpSLinear(n, n, bias=False, density=density, offset="dct")
                    layer.backend = backend
                    layers[f"dct {density:g} {backend}"] = layer
            for name, layer in layers.items():
                layer.to(bench.device, dtype)
                by = [x, *(tensor for tensor in layer.parameters() if tensor.requires_grad)]
                calls[name] = lambda layer=layer, x=x, by=by, g=g: torch.autograd.grad(layer(x), by, g)
            rows.append({"n": n, "batch": batch, "dtype": str(dtype), **bench.milliseconds(calls, 1.5)})
    return rows


def network(name: str, offset: str, device: torch.device) -> nn.Module:
    """A network for ten classes, channels last."""
    model = build_model(name, 10, 3)
    if offset != "dense":
        dctps.sparsify_(model, 0.001, offset=offset)
        dctps.zero_head_(model)
    return model.to(device).to(memory_format=torch.channels_last)


def step_of(
    model: nn.Module, device: torch.device, *, graphed: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """One training step in bfloat16, with Adam; gives the loss, which nobody waits for."""
    fused = {"fused": True} if device.type == "cuda" else {}
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, 1.5e-2, weight_decay=5e-4, **fused)

    def passed(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    replay = GraphedPass(passed, model, parameters) if graphed else None

    def step(images: Tensor, labels: Tensor) -> Tensor:
        if replay is None:
            optimizer.zero_grad(set_to_none=True)
        loss = (replay or passed)(images, labels)
        optimizer.step()
        return loss

    return step


def networks(bench: Bench) -> list[Result]:
    """Whole steps, and the most memory that one takes."""
    rows = []
    for name, batch in (("lenet5", 2),) if bench.tiny else (("vgg19", 512), ("resnet50", 512)):
        images = torch.randn(batch, 3, 32, 32, device=bench.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch,), device=bench.device)
        calls, peaks = {}, {}
        for offset in ("dense", "dct", "sdct"):
            step = step_of(network(name, offset, bench.device), bench.device)
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                step(images, labels)
                torch.cuda.synchronize()
                peaks[offset] = torch.cuda.max_memory_allocated() - before
            calls[offset] = lambda step=step, images=images, labels=labels: step(images, labels)
            if bench.device.type == "cuda":
                replayed = step_of(network(name, offset, bench.device), bench.device, graphed=True)
                calls[f"{offset}, graph"] = lambda step=replayed, images=images, labels=labels: step(
                    images, labels
                )
        rows.append({"model": name, "batch": batch, "peak_bytes": peaks, **bench.milliseconds(calls, 8)})
    return rows


def data(bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """CIFAR-10 on the device, or noise."""
    try:
        if bench.tiny:
            raise DataError("noise will do")
        found = load_dataset("cifar10")
        parts = [found.train, found.test]
        numbers = [normalize(p.images.to(bench.device), found.mean, found.std) for p in parts]
        return (
            numbers[0],
            parts[0].labels.to(bench.device),
            numbers[1],
            parts[1].labels.to(bench.device),
            True,
        )
    except DataError:
        noise = torch.randn(64 if bench.tiny else 50_000, 3, 32, 32, device=bench.device)
        labels = torch.randint(10, (len(noise),), device=bench.device)
        return noise, labels, noise[:16], labels[:16], False


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch in a new order, half of the images mirrored."""
    order = torch.randperm(len(images), device=images.device)
    for part in order.split(size)[: max(1, len(order) // size)]:
        batch = images[part]
        mirrored = torch.rand(len(part), device=images.device) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        yield batch.contiguous(memory_format=torch.channels_last), labels[part]


def training(bench: Bench) -> list[Result]:
    """VGG19 at 0.1% under `sdct` and `dct`, and dense, each for a third of the time that is left."""
    images, labels, test_images, test_labels, real = data(bench)
    rows, share = [], max(bench.left - 10, 0) / 3
    for offset in ("sdct", "dct", "dense"):
        torch.manual_seed(0)
        model = network("lenet5" if bench.tiny else "vgg19", offset, bench.device)
        step, stop, epochs = step_of(model, bench.device), time.monotonic() + share, 0
        while epochs < 1 or (time.monotonic() < stop and not bench.tiny):
            for batch in batches(images, labels, 16 if bench.tiny else 512):
                loss = step(*batch)
            epochs += 1
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
        model.eval()
        with torch.no_grad():
            right = [
                (model(part).argmax(1) == wanted).sum()
                for part, wanted in zip(test_images.split(500), test_labels.split(500), strict=True)
            ]
        accuracy = float(torch.stack(right).sum()) / len(test_labels) if real else None
        rows.append({"offset": offset, "epochs": epochs, "loss": float(loss), "test_accuracy": accuracy})
    return rows


PARTS = (
    ("device", device, 10), ("correct", correct, 20), ("weights", made, 20), ("linear", linear, 30),
    ("networks", networks, 60), ("training", training, 60),
)  # fmt: skip


def main() -> None:
    """Measure and write; the status is 1 where the kernels are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540, help="when it ends, at the latest")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the results")
    parser.add_argument("--tiny", action="store_true", help="shapes for Triton's interpreter")
    bench = Bench(parser.parse_args())
    for name, part, least in PARTS:
        bench.run(name, part, least)
    if isinstance(bench.found["parts"]["correct"], dict) and isinstance(
        bench.found["parts"]["correct"]["found"], str
    ):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
