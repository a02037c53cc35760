"""Copies, dtypes, state dicts and the tools of training: what people do with any nn.Module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tests.support.layers import KINDS, OFFSETS, draws, largest_difference, train_step, trained
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from dctps import sparsify_


def network(offset: str = "sdct", *, seed: int = 0, density: float = 0.2) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten()),
        *(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 5)),
    )
    sparsify_(model, density, offset=offset, seed=seed)
    return model


def trained_network(offset: str = "sdct", *, seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    model, x = network(offset, seed=seed), draws(6, 2, 4, 4)
    train_step(model, x)
    return model, x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_copies_are_the_layer(kind: str, offset: str) -> None:
    layer, x = trained(kind, offset)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        train_step(other, x)
        assert not torch.equal(other(x), expected) and torch.equal(layer(x), expected)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", ["dense path", "transform path", "3 x 3"])
def test_dtypes(kind: str, offset: str) -> None:
    layer, x = trained(kind, offset)
    expected = copy.deepcopy(layer).double()(x.double())
    for dtype, bound in ((torch.half, 5e-3), (torch.bfloat16, 4e-2), (torch.float32, 1e-5)):
        other = copy.deepcopy(layer).to(dtype)
        assert other.support.dtype == torch.int64 and torch.equal(other.support, layer.support)
        y = other(x.to(dtype))
        assert y.dtype == dtype and largest_difference(y.double(), expected) <= bound
        y.float().square().mean().backward()
        assert other.values.grad.dtype == dtype and bool(other.values.grad.isfinite().all())


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_state_dict_makes_the_other_network_this_one(offset: str) -> None:
    """Another seed has another support and another D; with the state it takes over both."""
    model, x = trained_network(offset)
    state = model.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = network(offset, seed=1)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), model(x))
    with torch.device("meta"):
        empty = network(offset)
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(x), model(x))


def test_state_dicts_that_do_not_fit_are_refused_by_name() -> None:
    model, _ = trained_network()
    before = {name: value.clone() for name, value in model[4].state_dict().items()}
    with pytest.raises(RuntimeError, match=r"layer '4'.*nnz=\d+, the state dict \d+.*density.*seed"):
        model.load_state_dict(network(density=0.3).state_dict())
    for change in (
        {"4.support": model.state_dict()["4.support"].flip(0)},
        {"4.support": model.state_dict()["4.support"] + 10_000},
        {"4.support": model.state_dict()["4.support"] - 10_000},
        {"4.support": model.state_dict()["4.support"].float()},
    ):
        with pytest.raises(RuntimeError, match="layer '4'"):
            model.load_state_dict(model.state_dict() | change)
    identity = model.state_dict()["4.identity"]
    for broken in (identity[:-3], identity.float(), identity + 1, torch.zeros(32, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="layer '4'.*averaged or cast"):
            model.load_state_dict(model.state_dict() | {"4.identity": broken})
    with pytest.raises(RuntimeError, match="layer '4'.*not the one that it was saved with"):
        model.load_state_dict(model.state_dict() | {"4.identity": model.state_dict()["0.identity"]})
    with pytest.raises(RuntimeError, match="4.identity"):
        model.load_state_dict({k: v for k, v in model.state_dict().items() if "identity" not in k})
    for name, value in model[4].state_dict().items():
        assert torch.equal(value, before[name]), name


def test_functional_call_vmap_and_jacrev() -> None:
    model, x = trained_network()
    parameters = dict(model.named_parameters())
    scaled = {name: 2 * p for name, p in parameters.items()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    assert torch.equal(functional_call(model, scaled, x), other(x))

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, image[None]).square().sum()

    per_image = vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and largest_difference(per_image[name].sum(0), p.grad) <= 1e-5
    jacobian = jacrev(lambda p: functional_call(model, p, x))(parameters)
    for name, p in parameters.items():
        assert jacobian[name].shape == (6, 5, *p.shape)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    gradients = []
    for recompute in (False, True):
        model, x = trained_network()
        leaf = x.clone().requires_grad_()
        y = checkpoint(model, leaf, use_reentrant=reentrant) if recompute else model(leaf)
        y.square().mean().backward()
        gradients.append([leaf.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_moving_averages(use_buffers: bool) -> None:
    model, x = trained_network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    average.update_parameters(model)
    before = model[4].values.detach().clone()
    for _ in range(3):
        train_step(model, x)
    average.update_parameters(model)
    assert not torch.equal(model[4].values, before)
    assert largest_difference(average.module[4].values, (before + model[4].values) / 2) <= 1e-6
    assert torch.equal(average.module[4].support, model[4].support)


def test_clipping_and_accumulation() -> None:
    model, x = trained_network()
    model(x).square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in x.split(2):
        model(part).square().sum().backward()
    for ours, theirs in zip((p.grad for p in model.parameters()), whole, strict=True):
        assert largest_difference(ours, theirs) <= 1e-5
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert largest_difference(norm, torch.cat([g.flatten() for g in whole]).norm()) <= 1e-5
    assert abs(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()) - 0.1) <= 1e-4


def test_autocast_with_a_scaler() -> None:
    model, x = trained_network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.dtype == torch.float32 for p in model.parameters())
