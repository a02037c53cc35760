"""A second computation of every criterion: float64, functions of tensors, plain loops, Python's sort.

Nothing is shared with the library: the network is a function of a dict of weights, its norms are formulas,
the Hessian product is a derivative along a direction, and the ranking sorts tuples.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jvp

GAP = 1e-9
ROUNDING = 1e-13
LAYERS = ("conv", "grouped", "depthwise", "hidden", "head")


class Network(nn.Module):
    """The same network as a module: convolutions (grouped and depthwise ones too), norms, linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, stride=2, groups=2)
        self.depthwise = nn.Conv2d(8, 8, (1, 2), groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 2 * 1, 7)
        self.head = nn.Linear(7, 4)
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv(x)))
        x = F.relu(self.norm2(self.depthwise(self.grouped(x))))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


def data(seed: int, count: int, size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 2, 5, 5, generator=generator, dtype=torch.float64),
            torch.randint(4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def constants(model: Network) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items() if t.is_floating_point()}


def weights(model: Network) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(f"{name}.weight").detach().clone() for name in LAYERS}


def norm(x, c, name, train):
    mean, var = (c[f"{name}.running_mean"], c[f"{name}.running_var"])
    if train:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
    return x * c[f"{name}.weight"][:, None, None] + c[f"{name}.bias"][:, None, None]


def forward(w, c, x, train):
    x = F.conv2d(x, w["conv"], padding=1)
    x = norm(x, c, "norm1", train).clamp(min=0)
    halves = [F.conv2d(x[:, 3 * i : 3 * i + 3], w["grouped"][4 * i : 4 * i + 4], stride=2) for i in range(2)]
    x = torch.cat(halves, 1) + c["grouped.bias"][:, None, None]
    x = torch.cat([F.conv2d(x[:, i : i + 1], w["depthwise"][i : i + 1]) for i in range(8)], 1)
    x = norm(x, c, "norm2", train).clamp(min=0)
    x = torch.tanh(x.flatten(1) @ w["hidden"].T + c["hidden.bias"])
    return x @ w["head"].T + c["head.bias"]


def loss_of(c, batches, train, temperature=1.0, nll=False):
    def loss(w):
        total = 0.0
        for x, labels in batches:
            logits = forward(w, c, x, train) / temperature
            picked = logits[torch.arange(len(labels)), labels]
            total = total + (picked.neg() if nll else logits.logsumexp(1) - picked).mean()
        return total / len(batches)

    return loss


class TieError(Exception):
    """Two scores at a boundary are too close for either computation to be held to."""


def kept_of(scores, keep, earlier=None, scale=0.0):
    """Masks of the `keep` largest of the network (a number) or of each layer (a dict).

    A zero stands below every other score; zeros are ranked by `earlier`, and -inf by nothing. Gaps are
    measured against the largest score of the whole network, `scale` or more. What a layer that has lost its
    signal is left with is rounding, in which no two computations agree what is zero.
    """
    if isinstance(keep, dict):
        finite = [s.abs()[s > -torch.inf] for s in (*scores.values(), *(earlier or {}).values())]
        scale = max(float(s.max()) for s in finite if s.numel())
        return {n: kept_of({n: scores[n]}, keep[n], earlier, scale)[n] for n in scores}
    entries = []
    for layer, name in enumerate(scores):
        before = (earlier or scores)[name].flatten().tolist()
        for index, value in enumerate(scores[name].flatten().tolist()):
            rank = -1 if value == float("-inf") else int(value != 0)
            entries.append((rank, value if rank else before[index], layer, index))
    signed = any(rank == 1 and value < 0 for rank, value, _, _ in entries)
    order = sorted(entries, key=lambda e: (0 if signed else -e[0], -e[1], e[2], e[3]))
    if 0 < keep < len(order):
        (rank, inside, _, _), (below, outside, _, _) = order[keep - 1 : keep + 1]
        scale = max(scale, *(abs(value) for r, value, _, _ in order if r >= 0))
        if not signed and any(r == 1 and value <= ROUNDING * scale for r, value, _, _ in order[:keep]):
            raise TieError
        zeros = rank == below == 0 and inside == outside == 0  # told apart by position alone, here as there
        if below >= 0 and not zeros and (inside - outside if rank == below else inside) <= GAP * scale:
            raise TieError
    masks = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for _, _, layer, index in order[:keep]:
        masks[list(scores)[layer]][index] = True
    return {name: mask.view(scores[name].shape) for name, mask in masks.items()}


def usable(scores, keep):
    if isinstance(keep, dict):
        return all(usable({n: scores[n]}, keep[n]) for n in keep)
    values = [value for score in scores.values() for value in score.flatten().tolist()]
    return sum(value not in (0.0, float("-inf")) for value in values) >= keep or keep == len(values)


def schedule(keep, sizes, step, steps):
    if isinstance(keep, dict):
        return {n: schedule(keep[n], {n: sizes[n]}, step, steps) for n in keep}
    size = sum(sizes.values())
    return keep if step == steps else round(size * (max(keep, 1) / size) ** (step / steps))


def snip(model, batches, keep, *, train=True):
    w = weights(model)
    g = grad(loss_of(constants(model), batches, train))(w)
    return kept_of({n: (w[n] * g[n]).abs() for n in w}, keep)


def grasp(model, batches, keep, *, train=True):
    w = weights(model)
    loss = loss_of(constants(model), batches, train, temperature=200.0)
    g = grad(loss)(w)
    _, hg = jvp(grad(loss), (w,), (g,))
    # The smallest -w Hg
    return kept_of({n: -(-w[n] * hg[n]) for n in w}, keep)


def force(model, batches, keep, *, train=True, steps, returning=True, nll=False):
    w, c = weights(model), constants(model)
    sizes = {n: w[n].numel() for n in w}
    masks, earlier = {n: torch.ones_like(w[n]) for n in w}, None
    for step in range(1, steps + 1):
        pruned = {n: w[n] * masks[n] for n in w}
        g = grad(loss_of(c, batches, train, nll=nll))(pruned)
        scores = {n: (w[n] * g[n]).abs() for n in w}
        if not returning:
            scores = {n: torch.where(masks[n] > 0, scores[n], -torch.inf) for n in w}
        earlier = scores if usable(scores, keep) else earlier
        kept = kept_of(scores, schedule(keep, sizes, step, steps), earlier)
        masks = {n: mask.double() for n, mask in kept.items()}
    return {n: m.bool() for n, m in masks.items()}


def synflow(model, batches, keep, *, rounds):
    w, c = weights(model), constants(model)
    sizes = {n: w[n].numel() for n in w}
    c = {n: t.abs() for n, t in c.items()}
    w = {n: t.abs() for n, t in w.items()}
    ones = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    masks, earlier = {n: torch.ones_like(w[n]) for n in w}, None
    for step in range(1, rounds + 1):
        pruned = {n: w[n] * masks[n] for n in w}
        g = grad(lambda p: forward(p, c, ones, False).sum())(pruned)
        scores = {n: torch.where(masks[n] > 0, pruned[n] * g[n], -torch.inf) for n in w}
        earlier = scores if usable(scores, keep) else earlier
        kept = kept_of(scores, schedule(keep, sizes, step, rounds), earlier)
        masks = {n: mask.double() for n, mask in kept.items()}
    return {n: m.bool() for n, m in masks.items()}


def layers_of(model):
    """The dense layers that a criterion scores, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
