"""The Triton kernels in Triton's interpreter, or on a GPU where there is one, against float64.

`test_triton.py` runs this file in a process of its own: TRITON_INTERPRET is read as the kernels are imported,
and no other test may see it.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dctps import gpu
from dctps.gpu import Entries, launch, rows
from dctps.product.geometry import ROWS, conv_geometry
from dctps.product.paths.factors import FACTORS, make_offset, make_weight, weight_gradients
from dctps.product.paths.tiles import TILES
from tests.support.drawn_weights import in_double, parts, weights

assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAST = torch.channels_last
# Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
EXAMPLES = settings(max_examples=15, deadline=None)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def like_input(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    """A tensor of the layout and dtype that W is to have."""
    x = torch.zeros(1, 2, *([2, 2] if len(shape) == 4 else []), dtype=dtype, device=DEVICE)
    return x.contiguous(memory_format=LAST) if last and len(shape) == 4 else x


def on_device(weight):
    return weight._replace(
        values=weight.values.to(DEVICE),
        alpha=None if weight.alpha is None else weight.alpha.to(DEVICE),
        support=weight.support.to(DEVICE),
    )


@EXAMPLES
@given(weights(), st.sampled_from(list(TOLERANCE)), st.booleans())
def test_the_weight_is_that_of_float64(weight, dtype, last) -> None:
    shape, exact = weight.offset.shape, in_double(weight)
    weight, x = on_device(weight), like_input(weight.offset.shape, dtype, last)
    d = make_offset(weight, x)
    assert isinstance(d, Entries) and gpu.is_usable(x)
    made = make_weight(weight, d, x)
    assert made.dtype == dtype and made.shape == shape
    assert made.is_contiguous(memory_format=LAST if last and len(shape) == 4 else torch.contiguous_format)
    assert (made.cpu() - exact).abs().max() <= TOLERANCE[dtype] * (1 + exact.abs().max())


@EXAMPLES
@given(weights(), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.booleans())
def test_the_gradients_are_those_of_float64(weight, dtype, last, need_values) -> None:
    shape = weight.offset.shape
    grad = torch.randn(shape).to(dtype)
    values = grad.double().take(weight.support)
    alpha = 0.0
    if weight.alpha is not None:
        alpha = (grad.double() * weight.offset.to_dense(dtype=torch.float64)).sum()
    if last and len(shape) == 4:
        grad = grad.contiguous(memory_format=LAST)
    weight, x = on_device(weight), like_input(shape, dtype, last)
    d = make_offset(weight, x)
    grad_values, grad_alpha = weight_gradients(grad.to(DEVICE), weight, d, need_values, True)
    if need_values:
        assert grad_values.dtype == torch.float32 and torch.equal(grad_values.cpu().double(), values)
    else:
        assert grad_values is None
    if weight.alpha is None:
        assert grad_alpha is None
    else:
        size = grad.double().norm() * weight.offset.norm()
        assert abs(float(grad_alpha) - float(alpha)) <= 1e-6 * float(size)


@pytest.mark.parametrize("name", ["dct", "sdct", "hadamard", "zero"])
@pytest.mark.parametrize("shape", [(64, 48), (40, 12), (12, 10, 3, 3)])
def test_a_layer_takes_two_launches_each_way_and_gives_float64s_numbers(name, shape, monkeypatch) -> None:
    weight, geometry = parts(name, shape, nnz=9), ROWS
    x = torch.randn(3, shape[1])
    if len(shape) == 4:
        geometry = conv_geometry(shape, (1, 1), (1, 1), (1, 1), 1)
        x = torch.randn(2, shape[1], 5, 5).contiguous(memory_format=LAST)
    exact = in_double(weight).requires_grad_()
    wanted = geometry.apply(x.double().requires_grad_(), exact, None)
    g = torch.randn(wanted.shape).contiguous(
        memory_format=LAST if len(shape) == 4 else torch.contiguous_format
    )
    wanted.backward(g.double())
    seen: Counter[str] = Counter()
    plainly = launch.launch

    def counted(kernel: str, *arguments) -> None:
        seen[kernel] += 1
        plainly(kernel, *arguments)

    monkeypatch.setattr(launch, "launch", counted)
    weight, x, g = on_device(weight), x.to(DEVICE), g.to(DEVICE)
    make_weight(weight, make_offset(weight, x), x)  # whether Triton works is asked once
    seen.clear()
    y = FACTORS.forward(x, weight, geometry, None, None)
    forward = 1 if name == "zero" else 2
    assert seen.total() == forward
    assert torch.allclose(y.cpu().double(), wanted.detach(), atol=1e-5)
    seen.clear()
    alpha = weight.alpha is not None
    _, grad_values, grad_alpha, _ = FACTORS.backward(
        g, x, weight, geometry, None, (False, True, alpha, False)
    )
    assert seen.total() == (2 if alpha else 1)
    assert torch.allclose(grad_values.cpu().double(), exact.grad.take(weight.support.cpu()), atol=1e-5)
    if alpha:
        dense = weight.offset.to_dense(dtype=torch.float64)
        assert float(grad_alpha) == pytest.approx(float((exact.grad * dense).sum()), rel=1e-5, abs=1e-4)


def test_nothing_to_put_and_nothing_to_read() -> None:
    weight = on_device(parts("dct", (8, 6), nnz=0))
    x = like_input((8, 6), torch.float32, False)
    d = make_offset(weight, x)
    exact = 0.7 * weight.offset.to_dense(dtype=torch.float64)
    assert (make_weight(weight, d, x).cpu() - exact).abs().max() <= 1e-6
    grad_values, grad_alpha = weight_gradients(torch.ones(8, 6, device=DEVICE), weight, d, True, True)
    assert grad_values.shape == (0,) and float(grad_alpha) == pytest.approx(
        float(exact.sum() / 0.7), abs=1e-5
    )
    empty = FACTORS.forward(torch.zeros(0, 6, device=DEVICE), weight, ROWS, None, None)
    assert empty.shape == (0, 8)


@st.composite
def calls_on_rows(draw):
    """A weight on rows of a length with two sides, rows of inputs, a bias, and gradients of the result."""
    sizes = st.integers(1, 70) | st.sampled_from([96, 127, 128, 160])
    m, n, batch = draw(sizes), draw(sizes), draw(st.integers(0, 19))
    weight = parts(
        draw(st.sampled_from(["dct", "sdct", "hadamard", "zero"])), (m, n), nnz=draw(st.integers(0, 40))
    )
    bias = torch.randn(m) if draw(st.booleans()) else None
    return weight, torch.randn(batch, n), bias, torch.randn(batch, m)


@settings(max_examples=30, deadline=None)
@given(calls_on_rows(), st.sampled_from(list(TOLERANCE)))
def test_rows_by_tiles_are_those_of_float64(call, dtype) -> None:
    weight, x, bias, g = call
    x, g = x.to(dtype), g.to(dtype)
    exact = in_double(weight)
    wanted = x.double() @ exact.T + (0 if bias is None else bias.double())
    on = on_device(weight)
    y = TILES.forward(x.to(DEVICE), on, ROWS, None if bias is None else bias.to(DEVICE), None)
    size = 1 + float(wanted.abs().max()) if wanted.numel() else 1.0
    near = 4 * TOLERANCE[dtype] * size
    assert y.dtype == dtype and torch.allclose(y.cpu().double(), wanted, rtol=0, atol=near)
    has_alpha = weight.alpha is not None
    grad_x, grad_values, grad_alpha, _ = TILES.backward(
        g.to(DEVICE), x.to(DEVICE), on, ROWS, None, (True, True, has_alpha, False)
    )
    of_weight = g.double().T @ x.double()
    near = 4 * TOLERANCE[dtype] * (1 + float((g.double() @ exact).abs().max()) if len(x) else 1.0)
    assert torch.allclose(grad_x.cpu().double(), g.double() @ exact, rtol=0, atol=near)
    assert torch.allclose(grad_values.cpu().double(), of_weight.take(weight.support), rtol=1e-5, atol=1e-5)
    if has_alpha:
        dense = weight.offset.to_dense(dtype=torch.float64)
        near = 1e-6 * float(of_weight.norm() * weight.offset.norm()) + 1e-9
        assert abs(float(grad_alpha) - float((of_weight * dense).sum())) <= near


def test_tiles_compute_only_what_is_asked_for(monkeypatch) -> None:
    """A first layer has no gradient of x, frozen values and a fixed alpha none of theirs."""
    weight, x, g = on_device(parts("sdct", (48, 32), nnz=9)), torch.randn(5, 32), torch.randn(5, 48)
    seen: Counter[str] = Counter()
    plainly = rows.launch
    monkeypatch.setattr(rows, "launch", lambda name, *rest: (seen.update([name]), plainly(name, *rest)))
    everything = TILES.backward(g.to(DEVICE), x.to(DEVICE), weight, ROWS, None, (True, True, True, False))
    assert seen == {"sparse_rows": 1, "sparse_gradient": 1, "adjoint_rows": 1, "add_parts": 1}
    for i, launches in enumerate(
        ({"sparse_rows": 1, "adjoint_rows": 1}, {"sparse_gradient": 1}, {"adjoint_rows": 1, "add_parts": 1})
    ):
        seen.clear()
        needs = tuple(i == j for j in range(3))
        found = TILES.backward(g.to(DEVICE), x.to(DEVICE), weight, ROWS, None, (*needs, False))
        assert seen == launches
        assert [part is not None for part in found] == [*needs, False]
        assert torch.equal(found[i], everything[i])


def test_pixels_take_tiles_as_rows() -> None:
    weight = parts("dct", (24, 16, 1, 1), nnz=11)
    geometry = conv_geometry((24, 16, 1, 1), (1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(2, 16, 3, 4).contiguous(memory_format=LAST)
    wanted = geometry.apply(x.double(), in_double(weight), None)
    y = TILES.forward(x.to(DEVICE), on_device(weight), geometry, None, None)
    assert y.is_contiguous(memory_format=LAST) and torch.allclose(y.cpu().double(), wanted, atol=1e-5)
