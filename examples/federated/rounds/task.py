"""The network, each client's images, and a round of training."""

import functools
import math

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import nn

import dctps
from dctps.data import batches, load_dataset
from dctps.models import build_model
from dctps.training import Precision, evaluate

data = functools.lru_cache(load_dataset)  # a process that serves many clients reads it once


def build(config) -> nn.Module:
    """The network as it begins, which everyone makes alone: D and S's supports follow from the seed."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    found = data(config["dataset"])
    model = build_model(config["model"], found.classes, *found.train.images.shape[1:3])
    dense = config["method"] == "dense"
    return model if dense else dctps.sparsify_(model, config["density"], seed=config["seed"])


def arrays_of(model: nn.Module, config) -> ArrayRecord:
    """What goes over the wire."""
    return ArrayRecord(dctps.trainable_state(model, config["statistics"], joined=True))


@functools.lru_cache  # of one and the same tensor of labels
def split(labels: torch.Tensor, clients: int, concentration: float, seed: int) -> list[torch.Tensor]:
    """Each client's images. Of each class client i has the share p_i, p ~ Dirichlet(concentration)."""
    draw, parts = np.random.default_rng(seed), [[] for _ in range(clients)]
    if not concentration:
        return list(torch.from_numpy(draw.permutation(len(labels))).tensor_split(clients))
    for label in range(int(labels.max()) + 1):
        images = draw.permutation((labels == label).nonzero().flatten().numpy())
        cuts = draw.dirichlet(np.full(clients, concentration)).cumsum()[:-1] * len(images)
        for part, found in zip(parts, np.split(images, cuts.round().astype(int)), strict=True):
            part.append(found)
    return [torch.from_numpy(np.concatenate(part)) for part in parts]


def rate(config, first: float, server_round: int) -> float:
    """It falls along a cosine."""
    return first * (1 + math.cos(math.pi * (server_round - 1) / config["num-server-rounds"])) / 2


def fit(model: nn.Module, own: torch.Tensor, config, server_round: int, seed: int) -> float:
    """Train on a share of one's own images, and give the mean loss.

    By Adam; or where the server has an Adam of its own, one step along the gradient of all of them.
    """
    found, draw = data(config["dataset"]), torch.Generator().manual_seed(seed)
    chosen = own[torch.randperm(len(own), generator=draw)[: math.ceil(config["share"] * len(own))]]
    optimizer, size = torch.optim.SGD(model.train().parameters(), 1.0), max(1, len(chosen))
    if not config["server-lr"]:
        first = rate(config, config["lr"], server_round)
        optimizer, size = torch.optim.Adam(model.parameters(), first), config["batch-size"]
    total = 0.0
    for x, y in batches(found.train.select(chosen), size, mean=found.mean, std=found.std):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    return total / max(1, len(chosen))


def accuracy(model: nn.Module, config) -> float:
    """On the test images."""
    found = data(config["dataset"])
    shown = batches(found.test, 500, mean=found.mean, std=found.std)
    return evaluate(model, shown, precision=Precision("off", "cpu")).accuracy
