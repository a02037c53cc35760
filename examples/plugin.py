"""An offset, an allocation, a criterion, a dynamics, a network and two methods of one's own."""

import torch
from torch import nn

import dctps
from dctps.models import register_model
from dctps.selection.allocation import share_out


@dctps.register_offset("flat")
class Flat(dctps.Offset):
    def to_dense(self, *, dtype=torch.float32, device="cpu"):
        return torch.full(self.shape, 1 / self.in_features, dtype=dtype, device=device)


@dctps.register_allocation("late")
def late(shapes, total, seed=0):  # layer l has a share of l
    return share_out({name: i for i, name in enumerate(shapes, 1)}, shapes, total)


@dctps.register_criterion("steep")
def steep(model, layers, loss, batches, *, power: float = 1.0):  # an option: --options power=2
    for batch in batches:
        loss(model, batch).backward()
    return {name: layer.weight.grad.abs() ** power for name, layer in layers.items()}


@dctps.register_dynamics("shaken")
class Shaken(dctps.SET):
    def __init__(self, model, optimizer, *, update_interval=50, drop_fraction=0.1, end, seed=0):
        when = {"update_interval": update_interval, "drop_fraction": drop_fraction, "end": end}
        super().__init__(model, optimizer, **when, decay="constant", seed=seed)


@register_model("tiny")
def tiny(classes, in_channels, image_size):
    inputs = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes))


dctps.register_method("flat-late", offset="flat", allocation="late", dynamics="shaken")
dctps.register_method("steep", offset="zero", allocation="global", criterion="steep")
