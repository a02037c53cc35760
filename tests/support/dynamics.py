"""RigL on dense masked weights in float64, one position at a time; and the optimizers written out."""

import math

import torch
from torch import nn

from dctps import sparsify_
from dctps.nn import DpSLayer


def move(values, active, gradient, count, regrow=True):
    """The new support and what has come into it, by sorting lists of positions.

    `values` and `gradient` are dense and flat; `active` is a sorted list of positions.
    """
    dropped = sorted(active, key=lambda p: (abs(float(values[p])), -p))[:count]
    free = [p for p in range(len(gradient)) if p not in active and float(gradient[p]) != 0]
    if regrow:
        ranked = sorted([*free, *dropped], key=lambda p: (-abs(float(gradient[p])), p))
        grown = ranked[:count]
    else:
        grown = sorted(free, key=lambda p: (-abs(float(gradient[p])), p))[:count]
        dropped = dropped[: len(grown)]
    kept = [p for p in active if p not in dropped]
    return sorted([*kept, *grown]), [p for p in grown if p not in active]


class Masked:
    """A network of DpS layers as dense ones, W = alpha * D + S with a mask on S's gradient, trained by hand.

    Args:
        model: `nn.Sequential`, float64, made by `sparsify_`.
        rule: `"sgd"`, `"nesterov"`, `"adam"` or `"adamw"`.
        lr: learning rate.
        decay: weight decay.
    """

    def __init__(self, model, rule, lr, decay):
        self.modules, self.rule, self.lr, self.decay = list(model), rule, lr, decay
        self.numbers, self.active, self.offsets, self.slots = {}, {}, {}, {}
        for i, layer in enumerate(self.modules):
            if isinstance(layer, DpSLayer):
                size = math.prod(layer.offset.shape)
                dense = torch.zeros(size, dtype=torch.float64)
                dense[layer.support] = layer.values.detach().clone()
                self.numbers[i, "S"] = dense
                self.active[i] = layer.support.tolist()
                self.offsets[i] = layer.offset.to_dense(dtype=torch.float64)
                for name in ("alpha", "bias"):
                    if getattr(layer, name) is not None:
                        self.numbers[i, name] = getattr(layer, name).detach().clone()
        for key, number in self.numbers.items():
            self.slots[key] = [torch.zeros_like(number), torch.zeros_like(number)]
        self.steps = 0

    def gradients(self, x, y):
        """Of the mean cross-entropy, in every number, S's dense."""
        leaves = {key: number.clone().requires_grad_() for key, number in self.numbers.items()}
        for i, layer in enumerate(self.modules):
            if isinstance(layer, DpSLayer):
                weight = leaves[i, "S"].reshape(layer.offset.shape)
                if (i, "alpha") in leaves:
                    weight = leaves[i, "alpha"] * self.offsets[i] + weight
                bias = leaves.get((i, "bias"))
                if isinstance(layer.merged(), nn.Linear):
                    x = nn.functional.linear(x, weight, bias)
                else:
                    x = nn.functional.conv2d(
                        x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
                    )
            else:
                x = layer(x)
        loss = nn.functional.cross_entropy(x, y)
        found = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def step(self, gradients):
        """One step of the optimizer, on the support only."""
        self.steps += 1
        for key, number in self.numbers.items():
            where = self.active[key[0]] if key[1] == "S" else slice(None)
            g, w = gradients[key][where], number[where]
            first, second = self.slots[key]
            if self.rule in ("sgd", "nesterov"):
                g = g + self.decay * w
                m = g if self.steps == 1 else 0.9 * first[where] + g
                first[where] = m
                number[where] = w - self.lr * (g + 0.9 * m if self.rule == "nesterov" else m)
                continue
            if self.rule == "adamw":
                w = w - self.lr * self.decay * w
            else:
                g = g + self.decay * w
            m, v = 0.9 * first[where] + 0.1 * g, 0.999 * second[where] + 0.001 * g**2
            first[where], second[where] = m, v
            scale = self.lr / (1 - 0.9**self.steps)
            number[where] = w - scale * m / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)

    def move(self, gradients, fraction, end, regrow=True):
        """RigL's update after the step just made."""
        f = fraction / 2 * (1 + math.cos(math.pi * self.steps / end))
        for i, active in self.active.items():
            values = self.numbers[i, "S"]
            new, grown = move(values, active, gradients[i, "S"], int(f * len(active)), regrow)
            for p in set(active) - set(new) | set(grown):
                values[p] = 0.0
                for slot in self.slots[i, "S"]:
                    slot[p] = 0.0
            self.active[i] = new


def network(offset="dct", density=0.3, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Conv2d(6, 8, 1), nn.Tanh(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    return sparsify_(model.to(dtype), density, offset=offset, allocation="erk", seed=5)


def batch(step, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(size, 2, 8, 8, generator=generator, dtype=dtype),
        torch.randint(4, (size,), generator=generator),
    )


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, DpSLayer)]


def supports(model):
    return [layer.support.tolist() for layer in layers_of(model)]


RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.01),
}
