"""Forward and backward of single layers, alone and of whole networks; and the DCT by itself."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from dctps.benchmarking.networks import channels_last, images_for
from dctps.benchmarking.plan import Cell, Plan
from dctps.benchmarking.timing import Step, measure
from dctps.kernels import NativeOffset, linear_forward, variant
from dctps.models import build_model
from dctps.networks.conversion import convert
from dctps.nn import DpSConv2d, DpSLinear, dps_conv2d, dps_linear
from dctps.product.rule import Backend
from dctps.transforms import dct

SIZES = (512, 1024, 2048, 4096)
# batch, channels in and out, side of the image, kernel
CONVOLUTIONS = (
    (32, 64, 64, 32, 3), (32, 128, 128, 16, 3), (64, 256, 256, 8, 3), (128, 512, 512, 4, 3),
    (32, 1024, 1024, 8, 1),
)  # fmt: skip
LAYOUTS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
_SHORTEST_MS = 1.0  # of the layers of networks


def linear_cells(plan: Plan) -> Iterator[Cell]:
    """Square linear layers beside `nn.Linear`, and SparseProp's (S alone) where it is installed."""
    batch = plan.batch or 256
    for n in plan.sizes or SIZES:
        densities = plan.densities or (0.001, 0.01, 0.05)
        for density in (plan.nnz_per_row / n,) if plan.nnz_per_row else densities:
            x = torch.randn(batch, n, requires_grad=True)
            g = torch.randn(batch, n)
            dense = nn.Linear(n, n)
            layers = {offset: DpSLinear(n, n, offset=offset, density=density) for offset in plan.offsets}
            steps = {"nn.Linear": layer_step(dense, x, g)} | _steps(layers, plan.backends, x, g)
            if density:  # there is no S alone without weights
                peer = sparseprop_step(DpSLinear(n, n, offset="zero", density=density).merged(), x, g)
                steps |= {} if peer is None else {"SparseProp": peer}
            cell: Cell = {"n": n, "density": density, "batch": batch}
            yield cell | {"candidates": measure(steps, plan.seconds)}


def convolution_cells(plan: Plan) -> Iterator[Cell]:
    """The convolutions of `CONVOLUTIONS` beside `nn.Conv2d`, from channels-last and from NCHW tensors."""
    chosen = [c for c in CONVOLUTIONS if plan.sizes is None or c[1] in plan.sizes]
    for (batch, inputs, outputs, side, kernel), (layout, memory_format), density in product(
        chosen, LAYOUTS.items(), plan.densities or (0.001, 0.01)
    ):
        shape = (inputs, outputs, kernel, 1, kernel // 2)
        x = torch.randn(batch, inputs, side, side).to(memory_format=memory_format).requires_grad_()
        g = torch.randn(batch, outputs, side, side).to(memory_format=memory_format)
        dense = nn.Conv2d(*shape, bias=False).to(memory_format=memory_format)  # type: ignore[call-overload]
        layers = {d: DpSConv2d(*shape, bias=False, offset=d, density=density) for d in plan.offsets}
        steps = {"nn.Conv2d": layer_step(dense, x, g)} | _steps(layers, plan.backends, x, g)
        cell: Cell = {"batch": batch, "in": inputs, "out": outputs, "side": side, "kernel": kernel}
        cell |= {"layout": layout, "density": density}
        yield cell | {"candidates": measure(steps, plan.seconds)}


def network_layers(plan: Plan) -> Iterator[Cell]:
    """Every different layer of the networks whose dense forward and backward takes over a millisecond."""
    for model in plan.models:
        for name, layer, x in _different_layers(model, plan.batch or 32):
            dense = copy.deepcopy(layer)
            first = not x.requires_grad
            g = torch.randn_like(dense(x).detach())
            steps = {"dense": layer_step(dense, x, g)}
            if measure(steps, 0.0)["dense"]["median_ms"] <= _SHORTEST_MS:
                continue
            for offset, density in product(plan.offsets, plan.densities or (0.0001, 0.001, 0.01, 0.1, 0.5)):
                made = convert(layer, offset=offset, density=density)
                steps[f"{offset} {density:g}"] = layer_step(made, x, g)
            cell = {"model": model, "layer": name, "kind": type(layer).__name__, "first": first}
            cell |= {"weight": list(layer.weight.shape), "input": list(x.shape)}
            yield cell | {"candidates": measure(steps, plan.seconds)}


def _different_layers(model: str, batch: int) -> list[tuple[str, Any, Tensor]]:
    """(name, layer, input) of each shape of layer; inputs other than the images have gradients."""
    network = channels_last(build_model(model, 10, 3))
    images = images_for(batch)
    names = {layer: name for name, layer in network.named_modules()}
    found: dict[str, tuple[str, Any, Tensor]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].detach()
        first = x.data_ptr() == images.data_ptr()
        of_shape = f"{layer} {tuple(x.shape)}"
        found.setdefault(of_shape, (names[layer], layer, x.clone().requires_grad_(not first)))

    layers = [layer for layer in names if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def layer_step(layer: Any, x: Tensor, g: Tensor, backend: Backend | None = None) -> Step:
    """Forward, and the gradients of x and of what trains; a new sum, none added to an older one."""
    by = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    if backend in (None, "auto"):
        return lambda: torch.autograd.grad(layer(x), by, g)
    parts = (layer.values, layer.support, layer.offset, layer.alpha, layer.bias)
    if isinstance(layer, DpSLinear):
        return lambda: torch.autograd.grad(dps_linear(x, *parts, backend=backend), by, g)
    window = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return lambda: torch.autograd.grad(dps_conv2d(x, *parts, **window, backend=backend), by, g)


def _steps(layers: Mapping[str, Any], backends: Sequence[Backend], x: Tensor, g: Tensor) -> dict[str, Step]:
    """Of each offset's layer, by each backend."""
    return {
        offset if backend == "auto" else f"{offset} {backend}": layer_step(layer, x, g, backend)
        for offset, layer in layers.items()
        for backend in backends
    }


def sparseprop_step(sparse: nn.Module, x: Tensor, g: Tensor) -> Step | None:
    """Its own gradients go to `.grad`, which are dropped before each step."""
    try:
        peer = importlib.import_module("sparseprop.modules.linear")
    except ImportError:
        return None
    layer = peer.SparseLinear.from_dense(sparse)
    parameters = [x, *layer.parameters()]

    def run() -> None:
        for p in parameters:
            p.grad = None
        layer(x).backward(g)

    return run


def transform_cells(plan: Plan) -> Iterator[Cell]:
    """The DCT-II of rows beside a real FFT of the same length, a copy, and the installed packages' DCTs."""
    batch = plan.batch or 256
    for n in plan.sizes or SIZES:
        x = torch.randn(batch, n)
        steps: dict[str, Step] = {"torch.fft.rfft": lambda x=x: torch.fft.rfft(x)}  # type: ignore[misc]
        if variant() != "off":
            steps["native"] = _native(x)
        steps["dctps on torch"] = lambda x=x: dct(x)  # type: ignore[misc]
        steps["copy"] = lambda x=x: x.clone()  # type: ignore[misc]
        steps |= _packages(x)
        yield {"n": n, "batch": batch, "candidates": measure(steps, plan.seconds)}


def _native(x: torch.Tensor) -> Step:
    n = x.shape[1]
    values, support, alpha = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.ones(1)
    form = NativeOffset("dct", n)
    return lambda: linear_forward(x, values, support, alpha, None, form, n)


def _packages(x: torch.Tensor) -> dict[str, Step]:
    found: dict[str, Step] = {}
    rows, threads = x.numpy(), torch.get_num_threads()
    if fft := _optional("scipy.fft"):
        found["scipy"] = lambda: fft.dct(rows, norm="ortho")
        found[f"scipy, {threads} workers"] = lambda: fft.dct(rows, norm="ortho", workers=threads)
    if peer := _optional("torch_dct"):
        found["torch-dct"] = lambda: peer.dct(x, norm="ortho")
    return found


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
