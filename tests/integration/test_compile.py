"""torch.compile: one graph, forward and backward, any batch."""

from __future__ import annotations

import pytest
import torch
from tests.support.layers import KINDS, OFFSETS, draws, largest_difference, trained
from torch import nn

from dctps import RigL, sparsify_


@pytest.fixture(autouse=True)
def _fresh_compiler():  # type: ignore[no-untyped-def]
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def agree(layer: nn.Module, compiled: nn.Module, x: torch.Tensor) -> None:
    results = []
    for module in (compiled, layer):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        g = draws(*y.shape, seed=3)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    for ours, theirs in zip(*results, strict=True):
        assert largest_difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_one_graph_for_any_batch(kind: str, offset: str) -> None:
    layer, x = trained(kind, offset)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    agree(layer, compiled, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (x[:2], torch.cat([x, x, x, x[:1]])):
            agree(layer, compiled, batch)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Flatten()),
        *(nn.Linear(8 * 36, 700), nn.ReLU(), nn.Linear(700, 10)),
    )


@pytest.mark.parametrize("offset", ["sdct", "zero"])
def test_a_network_under_inductor(offset: str) -> None:
    torch.manual_seed(0)
    # Evaluation mode: in training, BatchNorm makes the gradient of the alpha before it a sum that cancels.
    model = sparsify_(network(), 0.05, offset=offset).eval()
    compiled = torch.compile(model, fullgraph=True)
    x = draws(32, 2, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        agree(model, compiled, x)
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_nothing_of_the_weights_size_is_kept_for_backward() -> None:
    layer, x = trained("dense path", "dct")
    saved: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved.append(t.numel())
        return t

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        compiled(x.requires_grad_())
    assert saved and max(saved) < 12 * 20


def test_autocast_under_a_compiler() -> None:
    for kind in ("dense path", "transform path"):
        layer, x = trained(kind, "sdct")
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = compiled(x), layer(x)
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs)


def test_a_state_dict_of_another_seed_reaches_the_compiled_layer() -> None:
    layers = [sparsify_(nn.Sequential(nn.Linear(12, 20)), 0.2, offset="sdct", seed=s) for s in (0, 1)]
    compiled = torch.compile(layers[0], fullgraph=True, backend="aot_eager")
    x = draws(3, 12)
    compiled(x)
    layers[0].load_state_dict(layers[1].state_dict())
    assert largest_difference(compiled(x), layers[1](x)) <= 1e-6


def test_a_foreign_state_is_right_or_refused() -> None:
    one, other = (sparsify_(nn.Sequential(nn.Linear(12, 20)), 0.2, offset="sdct", seed=s) for s in (0, 1))
    x = draws(3, 12)

    def call(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(one, state, (x,))

    state = other.state_dict()
    assert largest_difference(torch.compile(call, backend="eager")(state, x), other(x)) <= 1e-6
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(call, backend="eager", fullgraph=True)(state, x)
    parameters = {name: 2 * p.detach() for name, p in one.named_parameters()}
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert largest_difference(compiled(parameters, x), call(parameters, x)) <= 1e-6


def test_a_moving_support_is_no_reason_to_compile_again() -> None:
    torch.manual_seed(0)
    model = sparsify_(nn.Sequential(nn.Linear(12, 20)), 0.2, offset="sdct")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moves = RigL(model, optimizer, update_interval=2, end=100)
    compiled, before = torch.compile(model, fullgraph=True, backend="aot_eager"), model[0].support.clone()
    compiled(draws(3, 12)).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            model.load_state_dict(model.state_dict())
            x = draws(3, 12, seed=step)
            (model if moves.due else compiled)(x).square().sum().backward()
            optimizer.step()
            moves.step()
            assert largest_difference(compiled(x), model(x)) <= 1e-6
    assert not torch.equal(model[0].support, before)


def test_a_damaged_support_is_not_compiled() -> None:
    model = sparsify_(nn.Sequential(nn.Linear(12, 20)), 0.2)
    model[0].support.add_(1000)
    with pytest.raises(Exception, match="layer '0': its support is not sorted positions in 0..239"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(draws(3, 12))
