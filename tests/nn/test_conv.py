import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dctps import DpSConv2d
from dctps.nn import dps_conv2d

OFFSETS = ["zero", "dct", "sdct", "hadamard", "gaussian"]


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of `nn.Conv2d` with everything that it takes, and images that it accepts."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans())
    channels = groups * (1 if depthwise else draw(st.integers(1, 4)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["same", "valid", (0, 0), (1, 0), (2, 1)]))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return {
        "in_channels": channels,
        "out_channels": groups * draw(st.integers(1, 5)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of torch's own layer
@given(
    arguments=convolutions(),
    offset=st.sampled_from(OFFSETS),
    density=st.sampled_from([0.01, 0.2, 1.0]),
    batch=st.sampled_from([None, 0, 1, 3]),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_layer_is_f_conv2d_forward_and_every_gradient(
    arguments: dict[str, object],
    offset: str,
    density: float,
    batch: int | None,
    channels_last: bool,
    dtype: torch.dtype,
) -> None:
    layer = DpSConv2d(**arguments, offset=offset, density=density, alpha=0.8, dtype=dtype)
    generator = torch.Generator().manual_seed(layer.nnz)
    with torch.no_grad():
        layer.values.copy_(torch.randn(layer.nnz, generator=generator))
    shape = (layer.in_channels, 9, 10) if batch is None else (batch, layer.in_channels, 9, 10)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last and batch is not None:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()

    # torch's own layer in float64, its weight set to alpha * D + S made here
    twin = nn.Conv2d(**arguments, dtype=torch.float64)
    leaves = {"values": layer.values.detach().double().requires_grad_()}
    weight = torch.zeros(layer.offset.shape, dtype=torch.float64).flatten()
    weight = weight.index_put((layer.support,), leaves["values"]).reshape(layer.offset.shape)
    if layer.alpha is not None:
        leaves["alpha"] = layer.alpha.detach().double().requires_grad_()
        weight = weight + leaves["alpha"] * layer.offset.to_dense(dtype=torch.float64)
    parameters = {"weight": weight}
    if layer.bias is not None:
        leaves["bias"] = parameters["bias"] = layer.bias.detach().double().requires_grad_()
    x64 = x.detach().double().requires_grad_()
    expected = torch.func.functional_call(twin, parameters, (x64,))

    y = layer(x)
    assert y.shape == expected.shape and y.dtype == dtype
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y.backward(g.to(dtype))
    expected.backward(g.to(dtype).double())
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    assert close(y, expected, tolerance)
    assert close(x.grad, x64.grad, tolerance)
    for name, leaf in leaves.items():
        if name == "values" and layer.nnz == 0:  # which nothing trains
            assert layer.values.grad is None
            continue
        assert close(getattr(layer, name).grad, leaf.grad, tolerance), name


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if not expected.numel():
        return got.shape == expected.shape
    return bool((got.double() - expected).abs().max() <= tolerance * (1 + expected.abs().max()))


@pytest.mark.parametrize("offset", ["zero", "dct", "sdct", "hadamard"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_pointwise_convolutions_by_their_transform(offset: str, stride: tuple[int, int]) -> None:
    layer = DpSConv2d(12, 7, 1, offset=offset, density=0.2, dtype=torch.float64)
    with torch.no_grad():
        layer.values.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 12, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.values, layer.bias) + (() if layer.alpha is None else (layer.alpha,))

    def product(x, values, bias, alpha=None, backend="transform"):  # type: ignore[no-untyped-def]
        return dps_conv2d(x, values, layer.support, layer.offset, alpha, bias, stride=stride, backend=backend)

    expected = F.conv2d(x, layer.weight, layer.bias, stride)
    assert torch.allclose(product(*inputs), expected)
    assert torch.allclose(product(*inputs, backend="dense"), expected)
    assert torch.autograd.gradcheck(product, inputs, fast_mode=True, check_forward_ad=True)


def test_larger_kernels_have_no_transform_path() -> None:
    layer = DpSConv2d(4, 4, 3, density=0.5)
    with pytest.raises(ValueError, match="only 1 x 1 convolutions"):
        dps_conv2d(torch.zeros(1, 4, 5, 5), layer.values, layer.support, layer.offset, backend="transform")


@pytest.mark.parametrize("offset", OFFSETS)
def test_gradcheck_and_function_transforms(offset: str) -> None:
    layer = DpSConv2d(4, 6, (3, 2), 2, (1, 2), (1, 2), 2, offset=offset, density=0.2, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.values, layer.bias) + (() if layer.alpha is None else (layer.alpha,))

    def product(x, values, bias, alpha=None):  # type: ignore[no-untyped-def]
        names = {"values": values, "bias": bias} | ({} if alpha is None else {"alpha": alpha})
        return torch.func.functional_call(layer, names, (x,))

    assert torch.autograd.gradcheck(product, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, inputs, fast_mode=True)
    samples = torch.stack([x, 2 * x])
    batched = torch.vmap(lambda x: product(x, *inputs[1:]))(samples)
    assert torch.allclose(batched, torch.stack([product(s, *inputs[1:]) for s in samples]))
    dual = torch.func.jacfwd(product, 1)(*inputs), torch.func.jacrev(product, 1)(*inputs)
    assert torch.allclose(*dual)


def test_autocast_gives_half_precision_and_float32_gradients() -> None:
    layer = DpSConv2d(4, 6, 3, density=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(2, 4, 8, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_impossible_arguments_are_torchs_own_errors() -> None:
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        DpSConv2d(3, 4, 3, groups=2, density=0.5)
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        DpSConv2d(3, 4, 3, padding_mode="mirror", density=0.5)
    with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(1, 4, 8, 8\)"):
        DpSConv2d(3, 4, 3, density=0.5)(torch.zeros(1, 4, 8, 8))


def test_only_x_is_saved_for_backward() -> None:
    layer = DpSConv2d(16, 16, 3, padding=1, density=0.01)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    own = {layer.values.data_ptr(), layer.alpha.data_ptr(), layer.support.data_ptr()}
    assert {t.data_ptr() for t in saved} - own == {x.data_ptr()}
