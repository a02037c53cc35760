import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dctps import DpSLinear
from dctps.kernels import variant
from dctps.nn import dps_linear
from dctps.offsets import build_offset
from dctps.product.paths.rows import has_native_transform
from dctps.sparse import random_support

OFFSETS = ["zero", "dct", "sdct", "hadamard", "gaussian"]
FAST = ["zero", "dct", "sdct", "hadamard"]


def paths(offset: str) -> list[str]:
    return ["dense", "transform"] if offset in FAST else ["dense"]


def native(offset: str, m: int, n: int) -> list[str]:
    return ["native"] if has_native_transform(build_offset(offset, (m, n))) and variant() != "off" else []


def dense_twin(layer: DpSLinear, x: torch.Tensor, g: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and every gradient by dense autograd in float64, on W built from D and S alone."""
    x = x.detach().double().requires_grad_()
    leaves = {"x": x, "values": layer.values.detach().double().requires_grad_()}
    weight = torch.zeros(layer.offset.shape, dtype=torch.float64).flatten()
    weight = weight.index_put((layer.support,), leaves["values"]).reshape(layer.offset.shape)
    if layer.alpha is not None:
        leaves["alpha"] = layer.alpha.detach().double().requires_grad_()
        weight = weight + leaves["alpha"] * layer.offset.to_dense(dtype=torch.float64)
    bias = None
    if layer.bias is not None:
        leaves["bias"] = bias = layer.bias.detach().double().requires_grad_()
    y = F.linear(x, weight, bias)
    y.backward(g.double())
    return {"y": y, **{name: leaf.grad for name, leaf in leaves.items()}}


@given(
    m=st.integers(1, 300),
    n=st.integers(1, 300),
    batch=st.sampled_from([(), (0,), (1,), (7,), (2, 3)]),
    density=st.sampled_from([1e-3, 0.02, 0.3, 1.0]),
    offset=st.sampled_from(OFFSETS),
    bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    data=st.data(),
)
def test_layer_is_f_linear_forward_and_every_gradient(
    m: int,
    n: int,
    batch: tuple[int, ...],
    density: float,
    offset: str,
    bias: bool,
    layout: str,
    data: st.DataObject,
) -> None:
    path = data.draw(st.sampled_from(paths(offset) + native(offset, m, n)))
    dtype = data.draw(
        st.sampled_from([torch.float32] if path == "native" else [torch.float64, torch.float32])
    )
    layer = DpSLinear(n, m, bias, offset=offset, density=density, seed=m, alpha=0.8, dtype=dtype)
    generator = torch.Generator().manual_seed(n)
    with torch.no_grad():
        layer.values.copy_(torch.randn(layer.nnz, generator=generator))
    x = torch.randn(*batch, n, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "transposed" and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        x = x.repeat_interleave(2, -1)[..., ::2]
    x.requires_grad_()
    g = torch.randn(*batch, m, generator=generator, dtype=torch.float64).to(dtype)

    expected = dense_twin(layer, x, g)
    y = dps_linear(x, layer.values, layer.support, layer.offset, layer.alpha, layer.bias, backend=path)
    y.backward(g)
    got = {"y": y, "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    for name, reference in expected.items():
        if name == "values" and layer.nnz == 0:  # which nothing trains
            assert got[name] is None
            continue
        error = (got[name].double() - reference).abs().max() if reference.numel() else 0.0
        # Every one of these is a sum of products: its error is measured against the root of their squares.
        scale = magnitude(name, layer, x, g)
        assert error <= tolerance * scale + 1e-300, (name, error, scale)
        assert got[name].dtype == dtype


def magnitude(name: str, layer: DpSLinear, x: torch.Tensor, g: torch.Tensor) -> float:
    """Root of the sum of squared terms, the largest over the entries of `name`."""
    x2 = x.detach().double().reshape(-1, x.shape[-1]).square()
    g2 = g.double().reshape(-1, g.shape[-1]).square()
    d2 = layer.offset.to_dense(dtype=torch.float64).square()
    w2 = layer.to_dense().detach().double().square() + d2
    if not x2.numel():
        return 1.0
    squares = {
        "y": x2 @ w2.T + 1,
        "x": g2 @ w2,
        "values": g2.T @ x2,
        "alpha": ((g2.T @ x2) * d2).sum(),
        "bias": g2.sum(0),
    }[name]
    return float(squares.max().sqrt())


def test_alpha_gradient_survives_cancellation() -> None:
    """Terms of size 1 that cancel to nearly nothing: the error stays at 1e-5 of the root of their squares."""
    for offset in ("dct", "sdct", "hadamard"):
        layer = DpSLinear(512, 512, offset=offset, density=1e-3)
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
        g = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
        dx = layer.offset.apply(x.double())
        g = (g - (g.double() * dx).sum() / dx.square().sum() * dx).float()  # <g, D x> = 0 but for rounding
        exact = (g.double() * dx).sum()
        scale = (g.double() * dx).square().sum().sqrt()
        for path in paths(offset) + native(offset, 512, 512):
            layer.alpha.grad = None
            dps_linear(x, layer.values, layer.support, layer.offset, layer.alpha, backend=path).backward(g)
            assert (layer.alpha.grad.double() - exact).abs() <= 1e-5 * scale


@pytest.mark.parametrize("offset", OFFSETS)
def test_gradcheck_and_function_transforms(offset: str) -> None:
    for m, n, nnz, batch in [(4, 6, 5, 2), (6, 4, 24, 3), (3, 5, 0, 2), (1, 1, 1, 1)]:
        operator = build_offset(offset, (m, n))
        support = random_support(m * n, nnz)
        generator = torch.Generator().manual_seed(nnz)
        x, values, alpha, bias = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in ((batch, n), (nnz,), (1,), (m,))
        )
        inputs = (x, values, bias) if offset == "zero" else (x, values, bias, alpha)
        for path in paths(offset):

            def product(x, values, bias, alpha=None, path=path):  # type: ignore[no-untyped-def]
                return dps_linear(x, values, support, operator, alpha, bias, backend=path)

            assert torch.autograd.gradcheck(product, inputs, check_forward_ad=True, fast_mode=True)
            assert torch.autograd.gradgradcheck(product, inputs, fast_mode=True)
            dual = (torch.func.jacfwd(product, 1)(*inputs), torch.func.jacrev(product, 1)(*inputs))
            assert torch.allclose(*dual)
            samples = torch.stack([x, 2 * x, x - 1])
            batched = torch.vmap(lambda x: product(x, *inputs[1:]))(samples)
            assert torch.allclose(batched, torch.stack([product(x, *inputs[1:]) for x in samples]))


def test_per_sample_gradients_and_functional_call() -> None:
    layer = DpSLinear(6, 4, density=0.3).double()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(5):
        one = torch.func.grad(loss)(parameters, x[i])
        for name in parameters:
            assert torch.allclose(each[name][i], one[name])
    hessian = torch.func.hessian(loss)(parameters, x)
    assert hessian["values"]["values"].shape == (layer.nnz, layer.nnz)


def test_stacked_values_train_as_separate_layers() -> None:
    layer = DpSLinear(6, 4, density=0.5).double()
    stacked = torch.randn(3, layer.nnz, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.ones(2, 6, dtype=torch.float64)
    outputs = torch.vmap(lambda v: torch.func.functional_call(layer, {"values": v}, (x,)))(stacked)
    for v, y in zip(stacked, outputs, strict=True):
        with torch.no_grad():
            layer.values.copy_(v)
        assert torch.allclose(layer(x), y)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_layers_and_autocast(offset: str, dtype: torch.dtype) -> None:
    layer = DpSLinear(60, 40, offset=offset, density=0.05, seed=1)
    with torch.no_grad():
        layer.values.add_(torch.randn(layer.nnz, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(16, 60, generator=torch.Generator().manual_seed(1))
    expected = dense_twin(layer, x, torch.ones(16, 40))
    for path in paths(offset):
        with torch.autocast("cpu", dtype):
            y = dps_linear(
                x, layer.values, layer.support, layer.offset, layer.alpha, layer.bias, backend=path
            )
        assert y.dtype == dtype
        layer.zero_grad()
        y.backward(torch.ones_like(y))
        for name, parameter in layer.named_parameters():
            assert parameter.grad.dtype == torch.float32
            error = (parameter.grad.double() - expected[name]).abs().max()
            assert error < 2e-2 * magnitude(name, layer, x, torch.ones(16, 40)), (path, name, error)
        assert (y.double() - expected["y"]).abs().max() < 2e-2 * expected["y"].abs().max()
    half = copy.deepcopy(layer).to(dtype)
    y = half(x.to(dtype))
    assert y.dtype == dtype
    y.backward(torch.ones_like(y))
    assert all(p.grad.dtype == dtype for p in half.parameters())


def test_wrong_inputs_are_named() -> None:
    layer = DpSLinear(6, 4, density=0.5)
    with pytest.raises(TypeError, match=r"holds torch.float32 and its input is torch.float64"):
        layer(torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(\*, 6\), got \(2, 5\)"):
        layer(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of density, nnz and support"),
        ({"density": 0.1, "nnz": 3}, "give one of"),
        ({"density": -0.1}, r"density must be in \[0, 1\]"),
        ({"density": 0.0, "offset": "zero"}, "density 0 trains no weight, and without an offset"),
        ({"nnz": 25}, r"nnz must be in 0\.\.24"),
        ({"nnz": -1}, r"nnz must be in 0\.\.24"),
        ({"density": 0.5, "offset": "cosine"}, "unknown offset 'cosine'"),
        ({"density": 0.5, "alpha": "two"}, '"one", "match" or a number'),
        ({"support": torch.tensor([99])}, "positions must be in"),
        ({"support": torch.tensor([1]), "device": "meta"}, "lost on the meta device"),
        ({"density": 0.5, "offset": build_offset("dct", (5, 6))}, "does not fit a weight of shape"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DpSLinear(6, 4, **arguments)


def test_only_x_is_saved_for_backward() -> None:
    layer = DpSLinear(300, 200, density=0.01)
    x = torch.randn(50, 300, requires_grad=True)
    for path in ("dense", "transform"):
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            dps_linear(x, layer.values, layer.support, layer.offset, layer.alpha, layer.bias, backend=path)
        own = {layer.values.data_ptr(), layer.alpha.data_ptr(), layer.support.data_ptr()}
        others = {t.data_ptr() for t in saved} - own
        assert others == {x.data_ptr()}


def test_state() -> None:
    layer = DpSLinear(30, 20, density=0.1, seed=5)
    assert set(layer.state_dict()) == {"values", "support", "alpha", "bias", "identity"}
    assert layer.alpha.item() == 1 and not layer.values.any()
    assert layer.nnz == 60 and layer.density == 0.1
    assert not list(layer.children())
    assert torch.equal(layer.weight, layer.to_dense())
    fixed = DpSLinear(30, 20, density=0.1, alpha_trainable=False, alpha=0.3)
    assert not fixed.alpha.requires_grad and fixed.alpha.item() == pytest.approx(0.3)
    plain = DpSLinear(30, 20, density=0.1, offset="zero")
    assert plain.alpha is None and plain.values.abs().max() <= 30**-0.5 and plain.values.std() > 0.05
    matched = DpSLinear(30, 20, density=0.1, alpha="match")
    norm = torch.linalg.vector_norm(matched.to_dense())
    assert norm.item() == pytest.approx((20 / 3) ** 0.5, rel=1e-5)


def test_meta_then_to_empty_then_reset_is_the_layer_itself() -> None:
    for offset in ("dct", "zero"):
        made = DpSLinear(30, 20, density=0.1, offset=offset, seed=5)
        with torch.device("meta"):
            meta = DpSLinear(30, 20, density=0.1, offset=offset, seed=5)
        assert meta.values.is_meta and meta.support.is_meta
        meta.to_empty(device="cpu").reset_parameters()
        for name, tensor in made.state_dict().items():
            assert torch.equal(meta.state_dict()[name], tensor), name


def test_pickle_deepcopy_and_conversion_after_a_step() -> None:
    layer = DpSLinear(30, 20, offset="sdct", density=0.1)
    x = torch.randn(4, 30)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    assert layer.values.any()
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    other = DpSLinear(30, 20, offset="sdct", density=0.1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    assert torch.allclose(layer.double()(x.double()).float(), y, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("offset", OFFSETS)
def test_cuda_is_the_cpu(offset: str) -> None:
    layer = DpSLinear(60, 40, offset=offset, density=0.05)
    x = torch.randn(16, 60)
    expected = layer(x)
    assert torch.allclose(layer.cuda()(x.cuda()).cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("offset", FAST)
def test_the_native_path_has_every_other_derivative_too(offset: str) -> None:
    """Second derivatives, forward mode, batching and half precision, against the torch path."""
    if not native(offset, 24, 40):
        pytest.skip("no compiled kernels")
    layer = DpSLinear(40, 24, offset=offset, density=0.1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, generator=generator)
    inputs = [x, *(p.detach() + 0.3 for p in (layer.values, layer.bias))]
    inputs += [] if layer.alpha is None else [layer.alpha.detach()]

    def run(backend: str) -> list[torch.Tensor]:
        def product(x, values, bias, alpha=None):  # type: ignore[no-untyped-def]
            return dps_linear(x, values, layer.support, layer.offset, alpha, bias, backend=backend)

        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad(product(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        ad, tangents = torch.autograd.forward_ad, []
        for i in range(len(inputs)):
            with ad.dual_level():
                duals = [ad.make_dual(p, torch.ones_like(p)) if i == k else p for k, p in enumerate(inputs)]
                tangents.append(ad.unpack_dual(product(*duals)).tangent)
        g = torch.randn(3, 6, 24, generator=torch.Generator().manual_seed(1))
        batched = torch.autograd.grad(product(*leaves), leaves, g, is_grads_batched=True)
        return [t.detach() for t in (*first, *second, *tangents, *batched)]

    for ours, theirs in zip(run("native"), run("dense"), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    half = layer.to(torch.bfloat16)
    y = half(x.bfloat16().requires_grad_())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in half.parameters())


def test_the_native_path_says_what_it_cannot_do() -> None:
    layer = DpSLinear(40, 24, offset="gaussian", density=0.1)
    parts = layer.values, layer.support, layer.offset, layer.alpha
    with pytest.raises(ValueError, match="no native kernel for GaussianOffset"):
        dps_linear(torch.zeros(1, 40), *parts, backend="native")
