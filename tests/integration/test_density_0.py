"""Networks under an offset without a single value: alpha, biases and norms train alone, everywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.support.layers import OFFSETS, draws, largest_difference, onnx_program
from torch import nn

import dctps
from dctps import DpSConv2d, DpSLinear, sparsify_
from dctps.benchmarking import Plan, run_bench
from dctps.dynamic import SET, RigL
from dctps.nn.conv1d import DpSConv1d

WITH_OFFSET = [offset for offset in OFFSETS if offset != "zero"]
LAYERS = {
    "linear": (lambda **o: DpSLinear(40, 24, **o), (5, 40)),
    "wide linear": (lambda **o: DpSLinear(640, 600, **o), (64, 640)),
    "3 x 3": (lambda **o: DpSConv2d(32, 16, 3, padding=1, **o), (2, 32, 8, 8)),
    "grouped": (lambda **o: DpSConv2d(8, 12, 3, groups=4, **o), (2, 8, 6, 6)),
    "depthwise": (lambda **o: DpSConv2d(16, 16, 3, groups=16, padding=1, **o), (2, 16, 8, 8)),
    "conv1d": (lambda **o: DpSConv1d(8, 6, 3, **o), (2, 8, 9)),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 4)),
    )


def labels(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 4)


@pytest.mark.parametrize("offset", WITH_OFFSET)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("backend", ["auto", "dense", "transform", "native"])
def test_a_layer_is_alpha_d_on_every_path(kind: str, offset: str, backend: str) -> None:
    build, shape = LAYERS[kind]
    layer, x = build(offset=offset, density=0, alpha=0.7), draws(*shape).requires_grad_()
    layer.backend = backend
    dense = copy.deepcopy(layer).merged()
    try:
        y, expected = layer(x), dense(x)
    except ValueError as error:  # not every layer has every path
        assert backend in ("transform", "native") and f"backend={backend!r} asks for it" in str(error)
        return
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, layer.alpha, layer.bias), g)
    by_x, by_w, by_b = torch.autograd.grad(expected, (x, dense.weight, dense.bias), g)
    d = layer.to_dense().detach() / 0.7
    by_alpha = (by_w.reshape(d.shape).double() * d.double()).sum().reshape(1)
    for ours, theirs in zip((y, found[0], found[2]), (expected, by_x, by_b), strict=True):
        assert largest_difference(ours, theirs) <= 1e-4
    # A sum of numbers of both signs, which may be much smaller than they are.
    assert (found[1].double() - by_alpha).abs() <= 1e-6 * by_w.double().norm() * d.double().norm()
    assert layer.nnz == layer.density == 0 and "nnz=0, density=0" in repr(layer)


@pytest.mark.parametrize("is_meta", [False, True])
@pytest.mark.parametrize("criterion", ["random", "magnitude", "snip", "offset-snip"])
def test_selection_needs_no_score(criterion: str, is_meta: bool) -> None:
    if is_meta and criterion != "random":
        return
    with torch.device("meta" if is_meta else "cpu"):
        dense = network()
    allocation = "erk" if criterion == "random" else None
    model = sparsify_(dense, 0, offset="sdct", criterion=criterion, allocation=allocation)
    report = dctps.report(model)
    assert report.density == report.nnz == report.training == 0 and not report.empty
    assert report.trainable["alpha"] == 3 and report.trainable["norm"] == 16
    assert "0 of 2,856 weights train (density 0.0000%)" in str(report)
    assert "linear" in str(dctps.explain(model, draws(2, 3, 8, 8))).lower()
    with pytest.raises(ValueError, match="unknown criterion 'snipe'"):
        sparsify_(network(), 0, criterion="snipe")


def test_without_an_offset_it_is_refused_and_the_network_stays() -> None:
    model = network()
    for criterion in ("random", "magnitude"):
        with pytest.raises(ValueError, match="density 0 trains no weight, and without an offset every layer"):
            sparsify_(model, 0.0, offset="zero", criterion=criterion)
    assert type(model[0]) is nn.Conv2d
    for build, _ in LAYERS.values():
        with pytest.raises(ValueError, match="choose a density above 0, or an offset such as 'dct'"):
            build(density=0, offset="zero")


def test_it_trains_averages_and_comes_back_from_its_file(tmp_path: Path) -> None:
    model, x = sparsify_(network(), 0), draws(64, 3, 8, 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    average = dctps.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    first = labels(model, x).item()
    for _ in range(20):
        optimizer.zero_grad()
        labels(model, x).backward()
        optimizer.step()
        average.update_parameters(model)
    assert labels(model, x).item() < 0.96 * first
    assert all(bool(p.isfinite().all()) for p in average.parameters())
    model.eval()
    for plain in (network(), sparsify_(network(), 0)):
        dctps.save_pretrained(model, tmp_path)
        assert torch.equal(dctps.load_pretrained_(plain, tmp_path).eval()(x), model(x))
    assert largest_difference(dctps.merge_(copy.deepcopy(model))(x), model(x)) <= 1e-4


@pytest.mark.parametrize("dynamics", [RigL, SET, dctps.DSR])
def test_dynamics_have_nothing_to_move(dynamics: type) -> None:
    model = sparsify_(network(), 0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match="no DpS layer whose values train.*with a density above 0"):
        dynamics(model, optimizer, end=100)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx(tmp_path: Path) -> None:
    model = sparsify_(network(), 0, offset="sdct").eval()
    _, run = onnx_program(model, draws(5, 3, 8, 8), tmp_path / "network.onnx")
    assert (run(draws(7, 3, 8, 8)) - model(draws(7, 3, 8, 8))).abs().max() <= 1e-4


def test_bench_measures_it() -> None:
    cells: list[dict] = []
    plan = Plan("linear", sizes=(64,), densities=(0,), batch=8, seconds=0.01, threads=1)
    run_bench(plan, on_cell=cells.append)
    assert cells[0]["density"] == 0 and {"dct", "sdct"} <= set(cells[0]["candidates"])
    with pytest.raises(ValueError, match="densities must be 0 or more"):
        run_bench(Plan("linear", densities=(-0.1,)), on_cell=cells.append)
