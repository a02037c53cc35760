"""W as a tensor of the graph: against W in float64, and kept only where it is small."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dctps.kernels import variant
from dctps.nn import DpSConv2d
from dctps.nn.kept_weight import keeps_weight, made_weight
from dctps.nn.maps import Conv2d
from dctps.nn.weight import Weight
from dctps.offsets import build_offset

pytestmark = pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")


def _drawn(name: str, shape: tuple[int, ...], groups: int, density: float) -> Weight:
    offset = build_offset(name, shape, groups=groups)
    generator = torch.Generator().manual_seed(0)
    size = offset.out_features * offset.in_features
    support = torch.randperm(size, generator=generator)[: round(density * size)].sort().values
    values = torch.randn(len(support), generator=generator).requires_grad_()
    alpha = None if name == "zero" else torch.tensor([0.7], requires_grad=True)
    return Weight(values, alpha, support, offset)


@given(
    name=st.sampled_from(["zero", "dct", "sdct"]),
    shape=st.sampled_from([((6, 4, 3, 2), 1), ((40, 17, 1, 1), 1), ((12, 1, 3, 3), 12), ((8, 1, 2, 5), 4)]),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_weight_and_derivatives_of_both_orders(
    name: str, shape: tuple[tuple[int, ...], int], density: float, layout: torch.memory_format
) -> None:
    weight = _drawn(name, *shape, density)
    leaves = [t for t in (weight.values, weight.alpha) if t is not None]
    in_double = [t.detach().double().requires_grad_() for t in leaves]
    values, alpha = (*in_double, None)[:2]
    expected = Weight(values, alpha, weight.support, weight.offset).to_dense()
    made = made_weight(weight, layout)
    assert made.is_contiguous(memory_format=layout)
    assert torch.allclose(made.double(), expected, atol=1e-5)

    seen = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    first = torch.autograd.grad((made * seen).sum(), leaves, retain_graph=True)
    tracked = torch.autograd.grad((made * seen * made).sum(), leaves, create_graph=True)
    exact = torch.autograd.grad((expected * seen * expected).sum(), in_double, create_graph=True)
    plain = torch.autograd.grad((expected * seen).sum(), in_double, retain_graph=True)
    second = torch.autograd.grad(sum(t.sum() for t in tracked), leaves)
    of_exact = torch.autograd.grad(sum(t.sum() for t in exact), in_double)
    for got, wanted in zip((*first, *tracked, *second), (*plain, *exact, *of_exact), strict=True):
        assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-4)


def test_tangents_of_a_layer_that_keeps_its_weight() -> None:
    layer = DpSConv2d(3, 8, 3, padding=1, density=0.5)
    x = torch.randn(4, 3, 9, 9)
    given_ = {"values": layer.values.detach(), "alpha": layer.alpha.detach(), "bias": layer.bias.detach()}
    tangents = {key: torch.randn_like(t) for key, t in given_.items()}

    def product(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x,))

    _, tangent = torch.func.jvp(product, (given_,), (tangents,))
    changed = {key: given_[key] + tangents[key] for key in given_}
    assert torch.allclose(tangent, product(changed) - product(given_), atol=1e-4)  # linear in all of them


def test_half_precision_rounds_the_weight_once() -> None:
    layer = DpSConv2d(3, 8, 3, density=0.5)
    x = torch.randn(2, 3, 9, 9)
    expected = F.conv2d(x.bfloat16(), layer.to_dense().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, expected + layer.bias.bfloat16()[:, None, None])
    y.float().sum().backward()
    assert layer.values.grad is not None and layer.values.grad.dtype == torch.float32


def test_kept_only_where_it_costs_no_memory_that_counts() -> None:
    offset, op = build_offset("dct", (64, 64, 3, 3)), Conv2d((1, 1), (1, 1), (1, 1), 1)  # 36,864 weights
    few, many = torch.empty(1, 64, 16, 16), torch.empty(72, 64, 16, 16)
    assert not keeps_weight(few, 36, offset, op) and keeps_weight(many, 36, offset, op)
    assert not keeps_weight(few, 12_287, offset, op) and keeps_weight(few, 12_288, offset, op)
    by_taps = torch.empty(64, 64, 2, 2).to(memory_format=torch.channels_last)
    assert not keeps_weight(by_taps, 36_864, offset, op)

    saved: list[torch.Size] = []
    layer = DpSConv2d(64, 64, 3, padding=1, density=0.001)
    layer.backend = "dense"
    for x in (few, many):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            layer(x.normal_().requires_grad_())
        assert (layer.offset.shape in saved) == (x is many)
