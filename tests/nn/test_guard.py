"""Writing into a layer's weight, and tools that would replace its values, are errors that say what to do."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from dctps import DpSConv2d, DpSLinear, sparsify_
from dctps.nn import DpSConv1d, DpSLayer

LOST = r"computes its weight, alpha \* D \+ S, at each access.*\.to_dense\(\) gives.*merge_"
WHOLE = r"cannot have weight, values or support parametrised.*merge_"

LAYERS: list[Callable[[], DpSLayer]] = [
    lambda: DpSLinear(8, 8, density=0.5),
    lambda: DpSConv1d(4, 6, 3, density=0.5, offset="sdct"),
    lambda: DpSConv2d(4, 4, 3, groups=2, density=0.5, offset="zero"),
]


def iadd(layer: DpSLayer) -> None:
    layer.weight += 1


def iadd_a_name(layer: DpSLayer) -> None:
    weight = layer.weight
    weight += 1


def item(layer: DpSLayer) -> None:
    layer.weight[0] = 1


def assign(layer: DpSLayer) -> None:
    layer.weight = torch.zeros_like(layer.to_dense())


def assign_none(layer: DpSLayer) -> None:
    layer.weight = None


def assign_parameter(layer: DpSLayer) -> None:
    layer.weight = nn.Parameter(torch.zeros_like(layer.to_dense()))


def assign_data(layer: DpSLayer) -> None:
    layer.weight.data = torch.zeros_like(layer.to_dense())


WRITES: list[Callable[[DpSLayer], object]] = [
    *(iadd, iadd_a_name, item, assign, assign_none, assign_parameter, assign_data),
    lambda layer: layer.weight.fill_(0),
    lambda layer: layer.weight.data.copy_(layer.to_dense()),
    lambda layer: layer.weight.data.mul_(2),
    lambda layer: layer.weight.detach().zero_(),
    lambda layer: layer.weight.view(-1)[3:].zero_(),
    lambda layer: layer.weight.chunk(2)[0].zero_(),
    lambda layer: torch.zeros(layer.weight.shape, out=layer.weight),
    lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    lambda layer: nn.functional.relu(layer.weight, inplace=True),
    lambda layer: nn.init.xavier_normal_(layer.weight),
    lambda layer: nn.init.kaiming_uniform_(layer.weight),
    lambda layer: nn.init.constant_(layer.weight, 1.0),
    lambda layer: nn.init.orthogonal_(layer.weight),
    lambda layer: nn.init.trunc_normal_(tensor=layer.weight),
    lambda layer: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) and layer.weight.sub_(1),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("graded", [False, True])
def test_a_write_says_what_to_do_and_changes_nothing(make: Callable[[], DpSLayer], graded: bool) -> None:
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    for write in WRITES:
        with torch.set_grad_enabled(graded), pytest.raises(RuntimeError, match=LOST):
            write(layer)
    assert all(torch.equal(before[key], tensor) for key, tensor in layer.state_dict().items())


def test_a_network_wide_initialisation_names_the_layer() -> None:
    model = sparsify_(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), 0.2)

    def initialise(module: nn.Module) -> None:
        if hasattr(module, "weight"):
            nn.init.xavier_normal_(module.weight)

    with pytest.raises(RuntimeError, match=r"DpSLinear '0' computes its weight"):
        model.apply(initialise)


def test_reading_is_as_of_any_tensor() -> None:
    layer = DpSLinear(6, 5, density=0.5)
    x = torch.randn(3, 6)
    y = nn.functional.linear(x, layer.weight, layer.bias)
    assert type(y) is Tensor and torch.allclose(y, layer(x), atol=1e-5)
    layer.weight.square().sum().backward()
    assert torch.allclose(layer.values.grad, 2 * layer.to_dense().detach().flatten()[layer.support])
    for own in (layer.weight.clone(), layer.weight * 1, layer.weight.detach().clone(), layer.to_dense()):
        assert type(own) is Tensor
        own.detach().zero_()
    zeros = torch.zeros(5, 6).copy_(layer.weight.detach())
    assert torch.equal(zeros, layer.to_dense())
    assert tuple(layer.weight.shape) == (5, 6) and layer.weight.max(0).values.shape == (6,)
    assert layer.weight.detach().numpy().shape == (5, 6) and "0" in repr(layer.weight)
    compiled = torch.compile(lambda weight: (2 * weight).sum(), backend="eager")
    assert torch.allclose(compiled(layer.weight.detach()), 2 * layer.to_dense().sum())


def test_a_parameter_made_of_it_is_plain() -> None:
    layer, dense = DpSLinear(6, 5, density=0.5), nn.Linear(6, 5)
    dense.weight = nn.Parameter(layer.weight)
    assert type(dense.weight) is nn.Parameter and dense.weight.is_leaf and dense.weight.requires_grad
    assert type(nn.Parameter(layer.weight.data, requires_grad=False)) is nn.Parameter
    dense(torch.ones(1, 6)).sum().backward()
    torch.optim.SGD(dense.parameters(), lr=1.0).step()
    nn.init.zeros_(copy.deepcopy(dense).weight)
    dense.weight.data = layer.weight.data
    dense.weight.data.zero_()
    assert not dense.weight.any() and layer.to_dense().any()


def test_files_and_copies_hold_plain_tensors() -> None:
    layer = DpSLinear(6, 5, density=0.5)
    file = io.BytesIO()
    torch.save({"tensor": layer.weight, "parameter": nn.Parameter(layer.weight)}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert type(found["tensor"]) is Tensor and type(found["parameter"]) is nn.Parameter
    assert type(copy.deepcopy(layer.weight.detach())) is Tensor
    assert copy.deepcopy(layer).weight.shape == (5, 6)


TOOLS: list[Callable[[nn.Module, str], object]] = [
    lambda layer, name: parametrize.register_parametrization(layer, name, nn.Identity()),
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
    prune.identity,
    lambda layer, name: prune.global_unstructured([(layer, name)], prune.L1Unstructured, amount=0.5),
    lambda layer, name: prune.custom_from_mask(layer, name, torch.ones_like(getattr(layer, name))),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("name", ["values", "weight"])
def test_tools_that_replace_are_refused_at_once(make: Callable[[], DpSLayer], name: str) -> None:
    layer = make()
    kind, keys = type(layer), list(layer.state_dict())
    for tool in TOOLS:
        with pytest.raises(RuntimeError, match=WHOLE):
            tool(layer, name)
        assert type(layer) is kind and list(layer.state_dict()) == keys and not layer._forward_pre_hooks
    with pytest.raises((RuntimeError, ValueError), match=f"{WHOLE}|parameter `weight` is None"):
        spectral_norm(layer, name)
    with (
        pytest.warns(FutureWarning, match="weight_norm"),
        pytest.raises(RuntimeError, match=WHOLE),
    ):
        weight_norm(layer, name)


def test_alpha_and_bias_can_be_parametrised() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    layer = DpSLinear(8, 8, density=0.5)
    parametrize.register_parametrization(layer, "alpha", Positive())
    parametrize.register_parametrization(layer, "bias", Positive())
    x = torch.randn(3, 8)
    expected = x @ layer.to_dense().T + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer(x).sum().backward()
    assert layer.parametrizations.alpha.original.grad is not None


def test_scripting_is_refused_with_what_works() -> None:
    model = nn.Sequential(DpSLinear(8, 8, density=0.5), nn.ReLU())
    with (
        pytest.warns((DeprecationWarning, FutureWarning), match=r"torch\.jit\.script"),
        pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot read DpSLinear.*torch\.jit\.trace"),
    ):
        torch.jit.script(model)
