"""torch.export and ONNX: programs for any batch that agree with the module and hold no weight matrix."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.support.layers import BATCH, KINDS, OFFSETS, draws, onnx_program, trained
from torch import Tensor, nn

from dctps import sparsify_
from dctps.nn import DpSLayer
from dctps.transforms.tables import clear_tables

STRICT = [("dense path", "dct", True), ("transform path", "sdct", True), ("3 x 3", "hadamard", True)]


@pytest.mark.parametrize(
    ("kind", "offset", "strict"), [(kind, offset, False) for kind in KINDS for offset in OFFSETS] + STRICT
)
def test_an_exported_program_takes_any_batch(kind: str, offset: str, strict: bool) -> None:
    clear_tables()
    layer, x = trained(kind, offset)
    program = torch.export.export(layer, (x,), dynamic_shapes=BATCH, strict=strict)
    for batch in (x, torch.cat([x, x, x[:1]]), x[:1]):
        assert (program.module()(batch) - layer(batch)).abs().max() <= 1e-4
    assert not any("dctps" in str(node.target) for node in program.graph.nodes)  # runs without this library
    size = math.prod(layer.offset.shape)
    if size > 1000:
        assert max((t.numel() for t in program.constants.values()), default=0) < size / 10
    assert layer(x).grad_fn is not None  # the tables that the export made serve eager mode


def test_a_fake_tensor_mode_leaves_no_fake_tables_behind() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    clear_tables()
    layer, x = trained("transform path", "sdct")
    clear_tables()
    layer.offset._held.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(x)
    assert type(layer(x)) is Tensor


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "offset"),
    [("transform path", offset) for offset in OFFSETS] + [("1 x 1 strided", "sdct"), ("grouped", "hadamard")],
)
def test_onnx(kind: str, offset: str, tmp_path: Path) -> None:
    layer, x = trained(kind, offset)
    program, run = onnx_program(layer, x, tmp_path / "layer.onnx")
    for batch in (x, torch.cat([x, x[:1]])):
        assert (run(batch) - layer(batch)).abs().max() <= 1e-4
    if offset != "gaussian" and "path" in kind:
        largest = max(math.prod(tensor.dims) for tensor in program.graph.initializer)
        assert largest < math.prod(layer.offset.shape) / 10


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_network_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 8, 1), nn.Flatten()),
        *(nn.Linear(8 * 16, 30), nn.ReLU(), nn.Linear(30, 10)),
    )
    sparsify_(model, 0.05, offset="dct")
    x = draws(5, 2, 6, 6)
    for module in model.modules():
        if isinstance(module, DpSLayer):
            nn.init.normal_(module.values, generator=torch.Generator().manual_seed(1))
    model.eval()
    _, run = onnx_program(model, x, tmp_path / "network.onnx")
    assert (run(draws(9, 2, 6, 6)) - model(draws(9, 2, 6, 6))).abs().max() <= 1e-4


def test_dct_by_products_is_the_dct() -> None:
    from dctps.transforms import dct
    from dctps.transforms.dct import _dct_by_products

    for n in (1, 2, 3, 7, 12, 25, 64, 97, 120):
        x = draws(3, n, seed=n).double()
        assert (_dct_by_products(x) - dct(x)).abs().max() <= 1e-12
