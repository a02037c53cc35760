"""Networks that have taken training steps, so that a file which holds nothing cannot pass."""

import torch
import torch.nn.functional as F
from torch import nn

import dctps


def plain(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


IMAGES = torch.linspace(-1, 1, 5 * 2 * 4 * 4).sin().reshape(5, 2, 4, 4)


def train(model: nn.Module, x: torch.Tensor = IMAGES, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        F.cross_entropy(y, torch.arange(len(x)) % y.shape[-1]).backward()
        optimizer.step()
    return model.eval()


def trained(density: float = 0.2, **options) -> nn.Module:
    torch.manual_seed(1)
    return train(dctps.sparsify_(plain(), density, **options))


def packed(density: float = 0.2, **options) -> nn.Module:
    """As `trained`, with supports that no seed gives."""
    torch.manual_seed(1)
    model = plain()
    weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    masks = {
        name: (torch.arange(m.weight.numel()) * 7919 % 101 < 101 * density).reshape(m.weight.shape)
        for name, m in model.named_modules()
        if m in weights
    }
    return train(dctps.sparsify_(model, criterion=masks, **options))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )
