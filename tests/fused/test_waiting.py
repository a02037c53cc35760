"""Whatever follows a fused BatchNorm2d, it is what follows a plain one."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dctps import fuse_
from dctps.fused import norm
from dctps.fused.norm import FusedBatchNorm2d
from dctps.fused.normalise import gradients
from dctps.fused.waiting import Waiting
from dctps.kernels import runnable_variants
from dctps.kernels.norm import NO_BOUNDS, RELU6, Bounds

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")

Use = Callable[[nn.ModuleList, Tensor], Tensor]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are taken too."""
    monkeypatch.setattr(norm, "_SMALL", 0)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def in_place(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    alias = h
    h += x
    return h, alias


def doubled(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    return F.relu(h + h)


def read_twice(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    return F.relu(h) * h


def watched(m: nn.ModuleList, x: Tensor) -> Tensor:
    seen = []
    handle = m[0].register_forward_hook(lambda module, args, y: seen.append(y))
    y = F.relu(m[0](x))
    handle.remove()
    return y * seen[0]


def within_a_hooked_module(m: nn.ModuleList, x: Tensor) -> Tensor:
    branch = nn.Sequential(m[0])
    branch.register_full_backward_hook(lambda module, grads, of_y: (2 * grads[0],))
    return F.relu(branch(x) + x)


def changed_unseen(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    F.relu(h, inplace=True)
    return Square.apply(h)


def looked_at(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    with torch.no_grad():
        mean = h.mean()
    return F.relu(h + x) * mean


def without_gradient(m: nn.ModuleList, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m[0](x)
    return F.relu(h + x)


def written_into(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    h[:, 0] = 0
    return F.relu(h)


def in_evaluation(m: nn.ModuleList, x: Tensor) -> Tensor:
    m.eval()
    y = F.relu(m[0](x) + x)
    m.train()
    return y


def second_derivative(m: nn.ModuleList, x: Tensor) -> Tensor:
    y = F.relu(m[0](x) + x)
    return torch.autograd.grad((y**3).sum(), x, create_graph=True)[0] / 10


def batch_of_gradients(m: nn.ModuleList, x: Tensor) -> Tensor:
    y = F.relu6(m[0](x))
    g = torch.linspace(-1, 1, 3 * y.numel()).reshape(3, *y.shape)
    by_x = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)[0]
    return by_x.sum(0) + y


def under_autocast(m: nn.ModuleList, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.relu(m[0](x) + x)


def with_saved_tensors_elsewhere(m: nn.ModuleList, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        h = m[0](x)
    return F.relu(h + x)


# What is done with a norm's result, and what it waits for from then on (None: it is the first's of two).
USES: dict[str, tuple[Use, str]] = {
    "relu": (lambda m, x: F.relu(m[0](x)), "activation"),
    "module": (lambda m, x: nn.ReLU6()(m[0](x)), "activation"),
    "in place": (lambda m, x: nn.ReLU(inplace=True)(m[0](x)), "activation"),
    "method": (lambda m, x: m[0](x).relu_(), "activation"),
    "hardtanh": (lambda m, x: F.hardtanh(m[0](x), -0.5, 0.7), "activation"),
    "sum": (lambda m, x: m[0](x) + x, "addition"),
    "residual": (lambda m, x: torch.relu(x + m[0](x)), "activation"),
    "residual in place": (lambda m, x: F.relu(in_place(m[0](x), x)[0]), "activation"),
    "an alias of it": (lambda m, x: F.relu(in_place(m[0](x), x)[1]), "activation"),
    "sum of two norms": (lambda m, x: F.relu(m[0](x) + m[1](2 * x)), "activation"),
    "twice the same": (doubled, "nothing"),
    "three terms": (lambda m, x: F.relu(m[0](x) + x + 2 * x), "addition"),
    "norm of a norm": (lambda m, x: F.relu(m[1](m[0](x) + x)), "addition"),
    "two consumers": (read_twice, "nothing"),
    "plus a number": (lambda m, x: F.relu(m[0](x) + 1), "nothing"),
    "broadcast": (lambda m, x: F.relu(m[0](x) + x[:1]), "nothing"),
    "scaled": (lambda m, x: F.relu(torch.add(m[0](x), x, alpha=2)), "nothing"),
    "another order": (lambda m, x: F.relu(m[0](x) + x.contiguous()), "nothing"),
    "views": (lambda m, x: m[0](x).permute(0, 2, 3, 1).flatten(1), "nothing"),
    "in a list": (lambda m, x: torch.cat([m[0](x), x], 1), "nothing"),
    "an own function": (lambda m, x: Square.apply(m[0](x)), "nothing"),
    "an own function of a sum": (lambda m, x: Square.apply(m[0](x) + x), "addition"),
    "an own function of an alias": (lambda m, x: Square.apply(in_place(m[0](x), x)[1]), "addition"),
    "changed unseen": (changed_unseen, "activation"),
    "written into": (written_into, "nothing"),
    "NCHW": (lambda m, x: F.relu(m[0](x.contiguous())), "activation"),
    "strided": (lambda m, x: F.relu(m[0](x[:, :, ::2])), "activation"),
    "bfloat16": (lambda m, x: F.relu(m[0](x.bfloat16())).float(), "activation"),
    "a hook": (watched, "activation"),
    "a hook around it": (within_a_hooked_module, "nothing"),
    "looked at": (looked_at, "nothing"),
    "without gradient": (without_gradient, "nothing"),
    "evaluation": (in_evaluation, "activation"),
    "second derivative": (second_derivative, "activation"),
    "batch of gradients": (batch_of_gradients, "activation"),
    "autocast": (under_autocast, "activation"),
    "saved elsewhere": (with_saved_tensors_elsewhere, "nothing"),
    **{
        f"checkpoint {kind}, {where}": (
            lambda m, x, f=f, reentrant=kind == "reentrant": f(m, x, reentrant),
            "activation" if where == "around" else "nothing",
        )
        for kind in ("reentrant", "other")
        for where, f in (
            ("around", lambda m, x, r: checkpoint(lambda t: F.relu(m[0](t) + t), x, use_reentrant=r)),
            ("before", lambda m, x, r: F.relu(checkpoint(m[0], x, use_reentrant=r))),
        )
    },
}


def norms(**options: object) -> nn.ModuleList:
    torch.manual_seed(7)
    made = nn.ModuleList([nn.BatchNorm2d(6, **options) for _ in range(2)])
    for p in made.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return made


def steps(use: Use, m: nn.ModuleList) -> Iterator[Tensor | None]:
    """Results and gradients of three calls."""
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(4, 6, 9, 10).contiguous(memory_format=torch.channels_last).requires_grad_()
        m.zero_grad()
        y = use(m, x)
        assert type(y) is Tensor or (type(y) is Waiting and y.shape == x.shape)
        (y * torch.randn_like(y)).sum().backward()
        yield from (y.detach() + 0, x.grad, *(p.grad for p in m.parameters()))
    yield from m.state_dict().values()


def assert_same(use: Use, plain: nn.ModuleList) -> nn.ModuleList:
    fused = fuse_(copy.deepcopy(plain))
    for expected, got in zip(steps(use, plain), steps(use, fused), strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            assert got.shape == expected.shape and got.stride() == expected.stride()
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    return fused


@pytest.mark.parametrize("use", USES)
def test_whatever_follows(use: str) -> None:
    function, waits_for = USES[use]
    assert assert_same(function, norms())[0].waits_for == waits_for


@pytest.mark.parametrize("options", [
    {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1, "momentum": 0.5},
])  # fmt: skip
@pytest.mark.parametrize("use", ["residual", "evaluation"])
def test_whatever_the_norm(options: dict[str, object], use: str) -> None:
    assert_same(USES[use][0], norms(**options))


def test_a_result_kept_while_its_terms_change_is_an_error() -> None:
    m = fuse_(norms())
    x = torch.randn(4, 6, 9, 10)
    h = m[0](x)
    x.zero_()
    with pytest.raises(RuntimeError, match="unfuse_"):
        F.relu(h)
    residual = torch.randn(4, 6, 9, 10)
    h = m[0](x) + residual
    residual.zero_()
    with pytest.raises(RuntimeError, match="added"):
        F.relu(h)


def test_hooks_see_tensors_and_what_is_asked_without_numbers_computes_none() -> None:
    m = fuse_(norms())
    x = torch.randn(4, 6, 9, 10, requires_grad=True)
    h = m[0](x)
    assert isinstance(h, Waiting) and h.shape == x.shape and h.dtype == x.dtype and h.requires_grad
    assert h.size(1) == 6 and h.value is None
    assert torch.equal(h.norm(), m[0](x).detach().norm())
    assert torch.equal(copy.deepcopy(h.detach()), h) and torch.equal(
        pickle.loads(pickle.dumps(h.detach())), h
    )
    m[0].register_forward_hook(lambda module, args, y: None)
    assert type(m[0](x)) is Tensor


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_the_kernel_does_not_take_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    m = fuse_(norms().eval())
    x = torch.randn(4, 6, 9, 10)
    y = F.batch_norm(x, m[0].running_mean, m[0].running_var, m[0].weight, m[0].bias)

    def of(t: Tensor) -> Tensor:
        return F.relu(m[0](t) + t)

    expected = F.relu(y + x)
    assert torch.allclose(torch.func.vmap(of)(x[None])[0], expected, atol=1e-5)
    assert torch.func.jvp(of, (x,), (x,))[1].shape == x.shape
    assert torch.func.grad(lambda t: of(t).sum())(x).shape == x.shape
    called = nn.Sequential(m[0], nn.ReLU())
    assert torch.allclose(torch.jit.trace(called, x)(x), F.relu(y), atol=1e-5)
    nodes = torch.export.export(called, (x,)).graph.nodes
    assert [n.target.name() for n in nodes if n.op == "call_function"] == ["aten::batch_norm", "aten::relu"]
    monkeypatch.setattr(norm, "variant", lambda: "off")
    assert type(m[0](x)) is Tensor
    with pytest.raises(ValueError, match="more than 1 value"):
        m[0].train()(torch.randn(1, 6, 1, 1))
    with pytest.raises(RuntimeError):
        m[0](torch.randn(4, 5, 9, 10))
    with pytest.raises(ValueError, match="4D"):
        m[0](torch.randn(4, 6))


def test_a_compiled_network_is_torchs_own() -> None:
    m = fuse_(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()))
    x = torch.randn(4, 6, 9, 10, requires_grad=True)
    compiled = torch.compile(copy.deepcopy(m), backend="aot_eager", fullgraph=True)
    y, expected = compiled(x), m(x)
    assert torch.allclose(y, expected, atol=1e-5)
    found, exact = (torch.autograd.grad(t.sum(), x)[0] for t in (y**2, expected**2))
    assert torch.allclose(found, exact, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bounds", [NO_BOUNDS, RELU6, Bounds(-0.3, 0.4)])
@pytest.mark.parametrize("adds", [True, False])
def test_the_twin_is_autograds_in_float64_and_has_second_derivatives(
    training: bool, bounds: Bounds, adds: bool
) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 4, 3, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight, bias = ((torch.rand(4, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(2))
    running = torch.randn(4).double(), torch.rand(4).double() + 0.5

    def forward(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        mean, variance = (t.clone() for t in running)
        y = F.batch_norm(x, mean, variance, weight, bias, training)
        y = y + residual if adds else y
        return y if bounds is NO_BOUNDS else F.hardtanh(y, *bounds)

    leaves = x, weight, bias, residual
    y = forward(*leaves)
    g = torch.randn_like(y).requires_grad_()
    expected = torch.autograd.grad(y, leaves, g, create_graph=True, allow_unused=True)
    with torch.no_grad():
        mean, variance = running
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        inverse = (variance + 1e-5).rsqrt()
        table = torch.stack([mean, inverse, inverse * weight, bias])
    found = gradients(g, x, weight, table, bounds, y.detach() if adds else None, training=training)
    for got, exact in zip(found, expected, strict=True):
        assert exact is None or bool(((got - exact).abs() <= 1e-12 * (1 + exact.abs().max())).all())
    second = torch.autograd.grad(found[0].pow(2).sum(), (x, weight, g), allow_unused=True)
    exact_second = torch.autograd.grad(expected[0].pow(2).sum(), (x, weight, g), allow_unused=True)
    for got, exact in zip(second, exact_second, strict=True):
        got, exact = (0.0 if t is None else t for t in (got, exact))
        assert bool((torch.as_tensor(got - exact).abs() <= 1e-11).all())


def test_the_class_and_nothing_else_changes() -> None:
    m = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    keys, modules = list(m.state_dict()), list(m.modules())
    assert fuse_(fuse_(m)) is m and list(m.state_dict()) == keys and list(m.modules()) == modules
    assert type(m[1]) is FusedBatchNorm2d and isinstance(m[1], nn.BatchNorm2d)
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert type(other[1]) is FusedBatchNorm2d
