"""Depthwise layers, channels last: every derivative against float64, and which calls the kernel takes."""

import pytest
import torch
from torch import Tensor, nn

import dctps.product.paths.depthwise
from dctps.kernels import variant
from dctps.nn import DpSConv2d, dps_conv2d
from dctps.offsets import build_offset
from dctps.product.geometry import conv_geometry
from dctps.product.path import Call
from dctps.product.paths.depthwise import DEPTHWISE

pytestmark = pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")

KERNELS = [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((5, 4), (1, 1)), ((1, 2), (3, 1))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernel's functions as they are called."""
    seen: list[str] = []
    for name in ("depthwise_forward", "depthwise_backward"):
        real = getattr(dctps.product.paths.depthwise, name)

        def noting(*arguments: object, name: str = name, real=real, **options: object) -> object:  # type: ignore[no-untyped-def]
            seen.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(dctps.product.paths.depthwise, name, noting)
    return seen


@pytest.mark.parametrize("name", ["zero", "dct", "sdct", "gaussian"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_both_derivatives_follow_the_float64_path(
    name: str, kernel: tuple[int, int], stride: tuple[int, int], calls: list[str]
) -> None:
    offset = build_offset(name, (18, 1, *kernel), groups=18)
    support = torch.arange(0, offset.out_features * offset.in_features, 5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 18, 9, 10, generator=generator).to(memory_format=torch.channels_last)
    inputs = [x, *(torch.randn(n, generator=generator) for n in (len(support), 18, 1))]

    def derivatives(dtype: torch.dtype, second: bool) -> list[Tensor]:
        x, values, bias, alpha = (t.to(dtype).requires_grad_() for t in inputs)
        leaves = [x, values, bias, *([] if name == "zero" else [alpha])]
        rest = {"stride": stride, "padding": (1, 0)}
        if dtype == torch.float32:
            rest["backend"] = "depthwise"
        y = dps_conv2d(x, values, support, offset, None if name == "zero" else alpha, bias, **rest)  # type: ignore[arg-type]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=second)
        if not second:
            return [y.detach(), *first]
        second_ = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        return [t.detach() for t in (*first, *second_)]

    for second in (False, True):
        pairs = list(
            zip(*(derivatives(dtype, second) for dtype in (torch.float32, torch.float64)), strict=True)
        )
        for got, exact in pairs:
            assert torch.allclose(got.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
        assert calls.count("depthwise_backward") == 1 + second  # where no graph is made


def test_tangents_and_gradients_in_batches() -> None:
    layer = DpSConv2d(16, 16, 3, padding=1, groups=16, density=0.2)
    x = torch.randn(2, 16, 5, 6).to(memory_format=torch.channels_last)
    parameters = {key: p.detach() for key, p in layer.named_parameters()}
    tangents = {key: torch.randn_like(p) for key, p in parameters.items()}

    def product(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,))

    y, tangent = torch.func.jvp(product, (parameters,), (tangents,))
    moved = {key: parameters[key] + tangents[key] for key in parameters}
    assert torch.allclose(tangent, product(moved) - y, atol=1e-4)  # linear in all of them

    leaf = x.clone().requires_grad_()
    y, gs = layer(leaf), torch.randn(3, 2, 16, 5, 6)
    batched = torch.autograd.grad(y, leaf, gs, is_grads_batched=True, retain_graph=True)[0]
    for g, got in zip(gs, batched, strict=True):
        assert torch.allclose(got, torch.autograd.grad(y, leaf, g, retain_graph=True)[0], atol=1e-5)


def test_which_calls_it_takes(calls: list[str]) -> None:
    last = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)

    def takes(x: Tensor, outputs: int = 8, groups: int = 8) -> bool:
        offset = build_offset("dct", (outputs, x.shape[1] // groups, 3, 3), groups=groups)
        geometry = conv_geometry(offset.shape, (1, 1), (1, 1), (1, 1), groups)
        return not DEPTHWISE.refusal(Call.of(x, 9, offset, geometry, native=True, training=True))

    assert takes(last)
    assert not takes(last.contiguous()) and not takes(last.bfloat16())
    assert not takes(last, 16)  # a multiplier
    assert not takes(torch.cat([last, last], 1))  # two inputs of each output

    layer = DpSConv2d(8, 8, 3, padding=1, groups=8, density=0.2)
    layer.backend = "depthwise"
    layer(last).sum().backward()  # whose gradient is one number, expanded
    assert calls == ["depthwise_forward", "depthwise_backward"]
    exact = layer.merged()(last)
    assert torch.allclose(layer(last), exact, atol=1e-5)


def test_a_network_is_that_of_its_merged_layers() -> None:
    layers = [
        DpSConv2d(20, 20, 3, 2, 1, groups=20, density=0.1),
        nn.ReLU(),
        DpSConv2d(20, 20, 5, groups=20, nnz=9),
    ]
    x = torch.randn(3, 20, 17, 16).to(memory_format=torch.channels_last).requires_grad_()
    dense = nn.Sequential(layers[0].merged(), nn.ReLU(), layers[2].merged())
    by = [torch.autograd.grad(network(x).square().sum(), x)[0] for network in (nn.Sequential(*layers), dense)]
    assert torch.allclose(*by, rtol=1e-4, atol=1e-5)
