"""Per-sample gradients by Opacus are those of each sample's own backward pass, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.support.layers import OFFSETS
from torch import nn

import dctps
from dctps.private import noise_report, per_sample

opacus = pytest.importorskip("opacus")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning", "ignore::FutureWarning")


def alone(model, x, reduce=lambda y: y.square().sum()):
    """The gradients of each sample by itself, by parameter, in float64."""
    wide = copy.deepcopy(model).double()
    found = []
    for sample in x.double():
        wide.zero_grad()
        reduce(wide(sample.unsqueeze(0))).backward()
        found.append([None if p.grad is None else p.grad.clone() for p in wide.parameters()])
    return [None if column[0] is None else torch.stack(column) for column in zip(*found, strict=True)]


def by_opacus(model, x, reduce=lambda y: y.square().sum(), loss_reduction="sum"):
    wrapped = per_sample(model, loss_reduction=loss_reduction)
    reduce(wrapped(x)).backward()
    return [p.grad_sample if p.requires_grad else None for p in model.parameters()]


def check(model, x, **options):
    expected = alone(model, x)
    for name, ours, theirs in zip(
        dict(model.named_parameters()), by_opacus(model, x, **options), expected, strict=True
    ):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            scale = max(float(theirs.abs().max()), 1.0)
            assert ours.shape == theirs.shape
            assert float((ours.double() - theirs).abs().max()) <= 1e-6 * scale, name


@given(st.data())
def test_linear(data):
    draw = data.draw
    inputs, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    layer = dctps.DpSLinear(
        inputs, outputs, draw(st.booleans()),
        offset=draw(st.sampled_from(OFFSETS)), nnz=draw(st.integers(0, inputs * outputs)),
        alpha_trainable=draw(st.booleans()),
    )  # fmt: skip
    if layer.nnz:
        nn.init.normal_(layer.values)
    if not any(p.requires_grad for p in layer.parameters()):
        return
    middle = draw(st.sampled_from([(), (1,), (5,), (2, 3)]))
    check(layer, torch.randn(draw(st.integers(1, 4)), *middle, inputs) / inputs**0.5)


@given(st.data())
def test_convolutions(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 2]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    axes = draw(st.sampled_from([1, 2]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    same = draw(st.booleans()) and set(strides) == {1}
    padding = "same" if same else tuple(draw(st.integers(0, 2)) for _ in range(axes))
    size = outputs * inputs // groups * torch.Size(kernel).numel()
    cls = dctps.DpSConv1d if axes == 1 else dctps.DpSConv2d
    layer = cls(
        inputs, outputs, kernel, strides, padding, dilations, groups, draw(st.booleans()),
        draw(st.sampled_from(["zeros", "circular"])), offset=draw(st.sampled_from(OFFSETS)),
        nnz=draw(st.integers(1, size)),
    )  # fmt: skip
    nn.init.normal_(layer.values)
    images = (draw(st.integers(5, 9)) for _ in range(axes))
    check(layer, torch.randn(draw(st.integers(1, 3)), inputs, *images) / size**0.5)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=4), nn.Tanh(), nn.Flatten(), nn.Linear(32, 10), nn.Tanh(), nn.Linear(10, 4),
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("density", [0.02, 0.7])
def test_a_network_and_its_loss(density, reduction):
    model, x, labels = dctps.sparsify_(network(), density), torch.randn(5, 3, 8, 8), torch.arange(5) % 4
    model[0].values.requires_grad_(False)
    shared = iter(labels)
    expected = alone(model, x, lambda y: F.cross_entropy(y, next(shared).view(1)))
    found = by_opacus(model, x, lambda y: F.cross_entropy(y, labels, reduction=reduction), reduction)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert float((ours - theirs).abs().max()) <= 1e-6 * max(float(theirs.abs().max()), 1.0)


def test_a_layer_used_twice():
    layer = dctps.DpSLinear(6, 6, density=0.5)
    check(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 6))


class Own(dctps.DpSLinear):
    """A user's own class."""


def test_a_class_of_ones_own():
    check(Own(5, 4, density=0.5), torch.randn(3, 5))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False, track_running_stats=False)]
)
def test_a_norm_that_mixes_samples_is_refused(norm):
    model = network()
    model[1] = norm
    with pytest.raises(ValueError, match=r"module '1' \(BatchNorm2d\) mixes the samples .* use GroupNorm"):
        per_sample(dctps.sparsify_(model, 0.1))


def test_parameters_beside_buffers_are_refused():
    model = dctps.project_(nn.Sequential(nn.Linear(4, 3)), 5)
    with pytest.raises(
        ValueError, match=r"module '' \(Hyperplane\) has parameters of its own beside buffers"
    ):
        per_sample(model)


def test_one_private_step_and_its_noise():
    model, draw = dctps.sparsify_(network(), 0.1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = torch.cat([p.flatten() for p in model.parameters()]).clone()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    wrapped = per_sample(model)
    private = opacus.optimizers.DPOptimizer(
        optimizer, noise_multiplier=3.0, max_grad_norm=0.5, expected_batch_size=6, generator=draw
    )
    F.cross_entropy(wrapped(torch.randn(6, 3, 8, 8)), torch.arange(6) % 4).backward()
    private.step()
    found = noise_report(wrapped, private)
    assert found.per_number == 3.0 * 0.5 / 6
    assert found.numbers == {kind: n for kind, n in dctps.report(model).trainable.items() if n}
    assert found.norms["values"] == pytest.approx(0.25 * found.numbers["values"] ** 0.5)
    moved = (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm()
    expected = found.per_number * sum(found.numbers.values()) ** 0.5
    assert abs(float(moved) - expected) < 0.2 * expected + 0.5
    lines = str(found).splitlines()
    assert lines[0].split()[0] == "kind" and lines[-1].split()[:2] == [
        "all",
        str(sum(found.numbers.values())),
    ]
    with pytest.raises(ValueError, match="SGD adds no noise"):
        noise_report(model, optimizer)
