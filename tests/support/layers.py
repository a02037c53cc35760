"""The layers that every integration test goes through: each path, each kind, trained for a step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dctps import DpSConv2d, DpSLinear

OFFSETS = ("dct", "sdct", "hadamard", "gaussian", "zero")

# kind -> (layer with an offset, shape of an input without its batch, a batch)
KINDS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...], int]] = {
    "dense path": (lambda offset: DpSLinear(12, 20, offset=offset, density=0.2), (12,), 6),
    "transform path": (lambda offset: DpSLinear(640, 600, offset=offset, density=0.01), (640,), 64),
    "3 x 3": (lambda offset: DpSConv2d(4, 6, 3, padding=1, offset=offset, density=0.2), (4, 5, 5), 3),
    "1 x 1": (lambda offset: DpSConv2d(8, 6, 1, offset=offset, density=0.2), (8, 5, 5), 3),
    "1 x 1 strided": (
        lambda offset: DpSConv2d(640, 600, 1, stride=2, offset=offset, density=0.01),
        (640, 11, 11),
        2,
    ),
    "grouped": (
        lambda offset: DpSConv2d(4, 6, 3, groups=2, padding="same", offset=offset, density=0.2),
        (4, 5, 5),
        3,
    ),
}


def trained(kind: str, offset: str, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A layer after one training step, in evaluation mode, and a batch for it."""
    build, shape, batch = KINDS[kind]
    layer = build(offset)
    x = draws(batch, *shape, seed=seed)
    train_step(layer, x)
    return layer.eval(), x


def train_step(model: nn.Module, x: Tensor, lr: float = 0.5) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest entry of the difference, as a share of the largest expected entry."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1e-12))


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """A function that runs an ONNX file in onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    (given,) = session.get_inputs()
    return lambda batch: torch.from_numpy(session.run(None, {given.name: batch.numpy()})[0])


BATCH = ({0: torch.export.Dim("batch", min=1, max=4096)},)


def onnx_program(model: nn.Module, x: Tensor, path: Path, dynamic_shapes=BATCH):  # type: ignore[no-untyped-def]
    """The onnx model, and a function that runs it in onnxruntime."""
    onnx = pytest.importorskip("onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        model, (x,), path, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False, external_data=False
    )
    return onnx.load(path), runner(path)
