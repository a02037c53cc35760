"""W that is kept for the backward pass: only where it is small."""

import pytest
import torch
import torch.nn.functional as F

from dctps.kernels import variant
from dctps.nn import DpSConv2d
from dctps.offsets import build_offset
from dctps.product.geometry import conv_geometry
from dctps.product.path import Call
from dctps.product.paths.made import KEPT

pytestmark = pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")


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
    layer.backend = "kept"
    x = torch.randn(2, 3, 9, 9)
    expected = F.conv2d(x.bfloat16(), layer.to_dense().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, expected + layer.bias.bfloat16()[:, None, None])
    y.float().sum().backward()
    assert layer.values.grad is not None and layer.values.grad.dtype == torch.float32


def test_kept_only_where_it_costs_no_memory_that_counts() -> None:
    offset = build_offset("dct", (64, 64, 3, 3))  # 36,864 weights
    geometry = conv_geometry(offset.shape, (1, 1), (1, 1), (1, 1), 1)
    few, many = torch.empty(1, 64, 16, 16), torch.empty(72, 64, 16, 16)

    def keeps(x: torch.Tensor, nnz: int) -> bool:
        return KEPT.wins(Call.of(x, nnz, offset, geometry, native=True, training=True))

    assert not keeps(few, 36) and keeps(many, 36)
    assert not keeps(few, 12_287) and keeps(few, 12_288)

    saved: list[torch.Size] = []
    layer = DpSConv2d(64, 64, 3, padding=1, density=0.001)
    layer.backend = "dense"
    for x in (few, many):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            layer(x.normal_().requires_grad_())
        assert (layer.offset.shape in saved) == (x is many)
