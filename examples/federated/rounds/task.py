"""The network, each client's images, and a round of training."""

import functools
import math

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import nn
from torch.nn.utils import parameters_to_vector

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


def rate(config, server_round: int) -> float:
    """It falls along a cosine."""
    return config["lr"] * (1 + math.cos(math.pi * (server_round - 1) / config["num-server-rounds"])) / 2


def scales(state: RecordDict, now: torch.Tensor, config, server_round: int) -> torch.Tensor:
    """What each number's gradient is multiplied by in a step: the rate by the gradient's root mean square.

    The server moved by the mean of the clients' steps, and a client that remembers its scales has the mean of
    all gradients from that. So all clients have the same scales without a word about them, and the mean of
    their steps is a step of RMSprop along the gradient of all images, however these are split.
    """
    scale, squares, weight = torch.ones_like(now), torch.zeros_like(now), torch.zeros(1)
    if "last" in state:
        last = state["last"].to_torch_state_dict()
        gradient = (last["numbers"] - now) / (last["scale"] * config["steps"])
        squares = 0.999 * last["squares"] + 0.001 * gradient**2
        weight = 0.999 * last["weight"] + 0.001
        scale = 1 / ((squares / weight).sqrt() + 1e-4)
    scale = scale * rate(config, server_round)
    state["last"] = ArrayRecord({"numbers": now, "scale": scale, "squares": squares, "weight": weight})
    return scale


def fit(
    model: nn.Module, own: torch.Tensor, config, server_round: int, seed: int, state: RecordDict
) -> float:
    """Train on a share of one's own images, and give the mean loss: by Adam, or in `steps` of such scales."""
    found, draw = data(config["dataset"]), torch.Generator().manual_seed(seed)
    chosen = own[torch.randperm(len(own), generator=draw)[: math.ceil(config["share"] * len(own))]]
    trained = [p for p in model.train().parameters() if p.requires_grad]
    size, factors = config["batch-size"], [1.0] * len(trained)
    optimizer = torch.optim.Adam(trained, rate(config, server_round))
    if config["steps"]:
        size, optimizer = math.ceil(len(chosen) / config["steps"]) or 1, torch.optim.SGD(trained, 1.0)
        scale = scales(state, parameters_to_vector(trained).detach(), config, server_round)
        parts = scale.split([p.numel() for p in trained])
        factors = [part.view_as(p) for part, p in zip(parts, trained, strict=True)]
    total = 0.0
    for x, y in batches(found.train.select(chosen), size, mean=found.mean, std=found.std):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        for parameter, factor in zip(trained, factors, strict=True):
            parameter.grad.mul_(factor)
        optimizer.step()
        total += loss.item() * len(y)
    return total / max(1, len(chosen))


def accuracy(model: nn.Module, config) -> float:
    """On the test images."""
    found = data(config["dataset"])
    shown = batches(found.test, 500, mean=found.mean, std=found.std)
    return evaluate(model, shown, precision=Precision("off", "cpu")).accuracy
