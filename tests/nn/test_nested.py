"""Nested inputs, jagged and strided, as nn.Linear takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dctps import DpSLinear

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

PARTS = [torch.randn(length, 8, generator=torch.Generator().manual_seed(length)) for length in (3, 1, 4)]


def result(layer: nn.Module, layout: torch.layout, dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of the input, one for each sequence, and of the bias."""
    parts = [part.to(dtype) for part in PARTS]
    x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    y = layer(x)
    assert y.is_nested and y.layout == layout and y.dtype == dtype
    torch.cat(y.unbind()).square().sum().backward()
    assert isinstance(x.grad, Tensor) and x.grad.is_nested
    return [*y.unbind(), *x.grad.unbind(), layer.get_parameter("bias").grad]


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize(
    ("offset", "backend"), [("dct", "auto"), ("sdct", "transform"), ("gaussian", "dense"), ("zero", "auto")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_backward(layout: torch.layout, offset: str, backend: str, dtype: torch.dtype) -> None:
    layer = DpSLinear(8, 5, density=0.5, offset=offset, dtype=dtype)
    nn.init.normal_(layer.values)
    layer.backend = backend  # type: ignore[assignment]
    dense = layer.merged()
    dense.bias = nn.Parameter(dense.bias.detach().clone())
    ours, theirs = result(layer, layout, dtype), result(dense, layout, dtype)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape and (mine - other).abs().max() <= 1e-4
    expected = dense.weight.grad.flatten()[layer.support]
    assert (layer.values.grad - expected).abs().max() <= 1e-4


def test_a_jagged_result_keeps_its_lengths() -> None:
    x = torch.nested.nested_tensor(PARTS, layout=torch.jagged)
    layer = DpSLinear(8, 8, density=0.5)
    assert (x + layer(x)).shape == x.shape  # a residual connection: torch sees that the lengths are the same
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x).values(), layer(x).values(), atol=1e-6)
    heads = torch.nested.nested_tensor_from_jagged(torch.randn(6, 2, 8), torch.tensor([0, 2, 6]))
    assert torch.equal(layer(heads).values(), layer(heads.values()))


def test_what_linear_layers_refuse_is_refused() -> None:
    layer = DpSLinear(8, 5, density=0.5)
    heads = torch.nested.nested_tensor_from_jagged(torch.randn(6, 2, 8), torch.tensor([0, 2, 6]))
    for x in (heads.transpose(1, 2), torch.nested.nested_tensor([torch.ones(8)] * 2)):
        with pytest.raises((ValueError, RuntimeError)):
            layer.merged()(x)
        with pytest.raises(ValueError, match=r"contiguous jagged ones and strided ones.*\.contiguous\(\)"):
            layer(x)
    with pytest.raises(ValueError, match=r"expected an input of shape \(\*, 8\)"):
        layer(torch.nested.nested_tensor([torch.ones(2, 7)] * 2, layout=torch.jagged))
