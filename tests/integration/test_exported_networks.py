"""Programs that leave this process: saved, traced, in ONNX by the older exporter; attention for any batch."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.layers import OFFSETS, draws, onnx_program, runner
from torch import Tensor, nn

from dctps import DpSConv2d, DpSLinear, sparsify_
from dctps.nn import DpSConv1d
from dctps.transforms.tables import clear_tables

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
Dim = torch.export.Dim

# kind -> (layer of an offset and a dtype, a batch, the axes of any size)
Make = Callable[[str, torch.dtype], nn.Module]
KINDS: dict[str, tuple[Make, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda offset, t: DpSLinear(37, 53, offset=offset, density=0.2, dtype=t), (4, 5, 37), (0, 1)),
    "no values": (lambda offset, t: DpSLinear(20, 53, offset=offset, nnz=0, dtype=t), (4, 20), (0,)),
    "1-D": (
        lambda offset, t: DpSConv1d(6, 8, 4, padding="same", offset=offset, density=0.2, dtype=t),
        (4, 6, 12),
        (0, 2),
    ),
    "3 x 3": (
        lambda offset, t: DpSConv2d(6, 8, 3, stride=2, padding=1, offset=offset, density=0.2, dtype=t),
        (4, 6, 8, 8),
        (0, 2, 3),
    ),
    "circular": (
        lambda offset, t: DpSConv2d(
            6, 8, 3, padding=1, padding_mode="circular", offset=offset, density=0.2, dtype=t
        ),
        (4, 6, 8, 8),
        (0, 2, 3),
    ),
    "1 x 1": (
        lambda offset, t: DpSConv2d(6, 8, 1, stride=2, offset=offset, density=0.2, dtype=t),
        (4, 6, 8, 8),
        (0, 2, 3),
    ),
    "grouped": (
        lambda offset, t: DpSConv2d(6, 8, 3, groups=2, offset=offset, density=0.2, dtype=t),
        (4, 6, 8, 8),
        (0, 2, 3),
    ),
    "depthwise": (
        lambda offset, t: DpSConv2d(6, 12, 3, groups=6, dilation=2, offset=offset, density=0.2, dtype=t),
        (4, 6, 8, 8),
        (0, 2, 3),
    ),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.2}


def case(
    kind: str, offset: str, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor, Tensor, tuple[int, ...]]:
    """A layer with drawn values, an example, a larger batch of larger images, and the axes that differ."""
    make, shape, axes = KINDS[kind]
    clear_tables()
    layer = make(offset, dtype).eval()
    torch.manual_seed(0)
    nn.init.normal_(layer.get_parameter("values"))
    larger = [size + 3 if axis in axes else size for axis, size in enumerate(shape)]
    return layer, draws(*shape).to(dtype), draws(*larger).to(dtype), axes


def agrees(run: Callable[[Tensor], Tensor], model: nn.Module, *batches: Tensor) -> None:
    for x in batches:
        expected = model(x)
        assert (run(x) - expected).abs().max() <= TOLERANCE[x.dtype]


def legacy_program(model: nn.Module, x: Tensor, path: Path, axes: tuple[int, ...], **options: object):  # type: ignore[no-untyped-def]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = {"x": {axis: f"axis{axis}" for axis in axes}}
    torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=names, **options)
    return runner(path)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_program_takes_any_size(kind: str, offset: str) -> None:
    for dtype in TOLERANCE if offset == "dct" else (torch.float32,):
        layer, x, larger, _ = case(kind, offset, dtype)
        traced = torch.jit.trace(layer, (x,), check_trace=dtype.itemsize > 2)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        agrees(torch.jit.load(file), layer, x, larger)
        assert layer(x).grad_fn is not None  # the tables that the trace made serve eager mode


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_trace_warns_of_nothing() -> None:
    for kind in ("linear", "1 x 1", "circular"):
        layer, x, *_ = case(kind, "dct")
        torch.jit.trace(layer, (x,))


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_older_onnx_exporter(kind: str, offset: str, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16) if offset == "sdct" else (torch.float32,):
        layer, x, larger, axes = case(kind, offset, dtype)
        agrees(legacy_program(layer, x, tmp_path / "layer.onnx", axes), layer, x, larger)


def test_the_older_onnx_exporter_for_one_size(tmp_path: Path) -> None:
    """Without dynamic axes it folds what does not depend on the input, which must leave the input in."""
    for offset in ("dct", "zero"):
        for kind in ("linear", "no values"):
            layer, x, *_ = case(kind, offset)
            agrees(legacy_program(layer, x, tmp_path / "layer.onnx", ()), layer, x)


def test_an_opset_that_cannot_add_is_refused(tmp_path: Path) -> None:
    layer, x, _, axes = case("linear", "dct")
    with pytest.raises(ValueError, match=r"opset_version=15 cannot add.*opset_version=16.*dynamo=True"):
        legacy_program(layer, x, tmp_path / "layer.onnx", axes, opset_version=15)
    assert not (tmp_path / "layer.onnx").exists()
    agrees(legacy_program(layer, x, tmp_path / "layer.onnx", axes, opset_version=16), layer, x)


@pytest.mark.parametrize("kind", ["1-D", "no values", "depthwise"])
def test_onnx_with_any_size_of_image(kind: str, tmp_path: Path) -> None:
    layer, x, larger, axes = case(kind, "sdct")
    sizes = ({axis: Dim.DYNAMIC if axis else Dim("batch", max=64) for axis in axes},)
    _, run = onnx_program(layer, x, tmp_path / "layer.onnx", sizes)
    agrees(run, layer, x, larger)


LOAD = """
import sys, torch
if {imported}: import dctps
for stem in sys.argv[1:]:
    program = torch.export.load(stem + ".pt2").module()
    torch.save([program(x) for x in torch.load(stem + ".x")], stem + ".y")
assert {imported} == ("dctps" in sys.modules)
"""


def test_saved_programs_load_in_other_processes(tmp_path: Path) -> None:
    """With and without this library."""
    layers = {}
    for kind, offset in zip(("linear", "3 x 3", "1 x 1", "linear", "linear"), OFFSETS, strict=True):
        layer, x, larger, axes = case(kind, offset)
        sizes = (dict.fromkeys(axes, Dim.DYNAMIC),)
        stem = str(tmp_path / offset)
        torch.export.save(torch.export.export(layer, (x,), dynamic_shapes=sizes), f"{stem}.pt2")
        torch.save([x, larger], f"{stem}.x")
        layers[stem] = layer
    for imported in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", LOAD.format(imported=imported), *layers],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not done.returncode, done.stderr
        for stem, layer in layers.items():
            for x, y in zip(torch.load(f"{stem}.x"), torch.load(f"{stem}.y"), strict=True):
                assert (layer(x) - y).abs().max() <= 1e-4


class Attends(nn.Module):
    """Self-attention with a mask of its own that depends on the input."""

    def __init__(self, weights: bool, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[..., 0] > 1.5
        y: Tensor = self.attention(x, x, x, key_padding_mask=hidden, need_weights=self.weights)[0]
        return y


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "weights": lambda: Attends(True),
    "no weights": lambda: Attends(False, add_zero_attn=True),
    "added keys": lambda: Attends(True, add_bias_kv=True, add_zero_attn=True),
    "encoder": lambda: encoder(False),
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_takes_any_batch_of_any_length(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = sparsify_(ATTENTION[kind](), 0.1).eval()
    x, longer = draws(3, 5, 32), draws(7, 9, 32)
    sizes = ({0: Dim("batch", max=64), 1: Dim("length", max=64)},)
    program = torch.export.export(model, (x,), dynamic_shapes=sizes)
    agrees(program.module(), model, x, longer)
    agrees(torch.jit.trace(model, (x,)), model, x, longer)
    agrees(legacy_program(model, x, tmp_path / "older.onnx", (0, 1)), model, x, longer)
    if kind in ("weights", "encoder"):
        agrees(onnx_program(model, x, tmp_path / "newer.onnx", sizes)[1], model, x, longer)
