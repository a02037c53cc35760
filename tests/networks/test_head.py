"""The loss of a network whose classifier begins at zero is known: ln C, whatever the network."""

import math

import pytest
import torch
from torch import nn

import dctps
from dctps import zero_head_
from dctps.data import describe_dataset
from dctps.experiments import RunConfig
from dctps.experiments.config import resolve
from dctps.experiments.network import build_network
from dctps.models import build_model

IMAGES, LABELS = torch.randn(8, 3, 32, 32), torch.arange(8) % 10


def loss(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(IMAGES), LABELS)


@pytest.mark.parametrize("offset", ["dct", "sdct", "hadamard", "gaussian", "zero", None])
def test_the_classifier_begins_at_zero_and_all_of_it_trains(offset: str | None) -> None:
    model = build_model("resnet20", 10, 3)
    if offset is not None:
        dctps.sparsify_(model, 0.05, offset=offset)
    before = loss(model).item()
    assert zero_head_(model) is model
    found = loss(model).item()
    assert abs(before - math.log(10)) > 0.01 and found == pytest.approx(math.log(10), abs=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # the classifier first, all that is before it next
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert loss(model) < found
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.numel())


def test_a_layer_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    zero_head_(model, "2")
    assert not model[2].weight.any() and not model[2].bias.any()
    assert model[0].weight.any() and model[3].weight.any()
    zero_head_(model)
    assert not model[3].weight.any()


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer 'head' to begin at zero: the layers are 0"):
        zero_head_(nn.Sequential(nn.Linear(2, 2)), "head")
    with pytest.raises(ValueError, match="no linear or convolutional layer .* the layers are none"):
        zero_head_(nn.ReLU())


@pytest.mark.parametrize("method", ["dctps", "sdctps-rigl", "random-epl", "dense", "hyperplane"])
def test_runs_begin_so(method: str) -> None:
    density = {} if method == "dense" else {"density": 0.05}
    config = resolve(RunConfig(method=method, dataset="cifar10", zero_head=True, **density))
    model = build_network(config, describe_dataset("cifar10"), torch.device("cpu"))
    assert loss(model).item() == pytest.approx(math.log(10), abs=1e-6)
