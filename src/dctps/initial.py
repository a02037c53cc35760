"""The laws that weights are drawn from at initialisation, known without the weights.

A network says how its layers begin by a `weight_law`, and a `bias_law`, on each `nn.Linear` and `nn.Conv2d`
(`set_laws`): two plain attributes. On real tensors they are filled at once; on the meta device they tell
`sparsify_` what would have been there. A layer without one follows torch's own default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dctps.counter import derive_key, normal, uniform

Kind = Literal["normal", "uniform", "zeros"]
Init = Literal["dense", "fan-in"]


@dataclass(frozen=True)
class Law:
    """Independent entries of mean 0.

    Attributes:
        kind: `"normal"`, `"uniform"` (on -sqrt(3) std .. sqrt(3) std) or `"zeros"`.
        std: standard deviation of an entry; 0 for zeros, else above 0.

    Raises:
        ValueError: another kind, or a std that is not of that kind.
    """

    kind: Kind
    std: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a law is one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not math.isfinite(self.std) or self.std < 0 or (self.std == 0) != (self.kind == "zeros"):
            raise ValueError(f"std must be 0 for zeros and else above 0, got {self.std} for {self.kind!r}")

    def norm(self, size: int) -> float:
        """sqrt(size) std: the root of the expected squared Frobenius norm of a tensor of `size` entries."""
        return math.sqrt(size) * self.std

    @torch.no_grad()
    def fill_(self, tensor: Tensor) -> None:
        """Draw a dense tensor's entries from torch's global generator, as `torch.nn.init` does."""
        if self.kind == "normal":
            tensor.normal_(0.0, self.std)
        elif self.kind == "uniform":
            tensor.uniform_(-math.sqrt(3) * self.std, math.sqrt(3) * self.std)
        else:
            tensor.zero_()

    def draw(self, seed: int, layer: str, purpose: str, positions: Tensor) -> Tensor:
        """Entries at `positions` by the counter-based generator, each from the draw of its own position.

        Args:
            seed: of the layer.
            layer: its qualified name.
            purpose: `"values"` or `"bias"`; the three make the key.
            positions: int64, flat.

        Returns:
            float64, of the shape of `positions`.
        """
        key = derive_key(seed, layer, purpose)
        if self.kind == "normal":
            return self.std * normal(key, positions)
        if self.kind == "uniform":
            return math.sqrt(3) * self.std * (2.0 * uniform(key, positions) - 1.0)
        return torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)


@dataclass(frozen=True)
class FanInLaw(Law):
    """N(0, std^2 n / f) for the f weights that a sparse row has of n: its output varies as if all were there.

    Attributes:
        std: of an entry of a full row.
        inputs: n.

    Reference: Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", AAAI 2022.
    """

    inputs: int = 1

    def draw(self, seed: int, layer: str, purpose: str, positions: Tensor) -> Tensor:
        """As of `Law`, for all positions of a weight of `inputs` columns: they say how many each row has."""
        _, row, counts = (positions // self.inputs).unique(return_inverse=True, return_counts=True)
        scales: Tensor = (self.inputs / counts.double()).sqrt()
        return scales[row] * super().draw(seed, layer, purpose, positions)


ZEROS = Law("zeros")


def default_law(inputs: int) -> Law:
    """Torch's own for weight and bias of linear and convolutional layers: U(-1/sqrt(n), 1/sqrt(n)).

    Args:
        inputs: n, of one output.
    """
    return Law("uniform", 1 / math.sqrt(3 * inputs))


def kaiming_normal(fan: int) -> Law:
    """N(0, 2 / fan), which keeps second moments through ReLUs.

    Args:
        fan: inputs of one output (`fan_in`), or outputs that one input reaches (`fan_out`).

    Reference: He et al., "Delving Deep into Rectifiers", ICCV 2015, equations 10 and 14.
    """
    return Law("normal", math.sqrt(2 / fan))


def law_by(init: Init, law: Law, inputs: int) -> Law:
    """The law of a sparse layer's values, from that of its dense weight.

    Args:
        init: `"dense"`: the same law. `"fan-in"`: each row by its own number of weights f, N(0, 2 / f) (He's
            gain for ReLUs) where `law` is torch's default. Another law keeps its own gain, N(0, std^2 n / f),
            and zeros stay zeros, as the network asked for them.
        law: of the dense weight.
        inputs: n, of one output.

    Raises:
        ValueError: another word.
    """
    if init not in get_args(Init):
        raise ValueError(f'init must be "dense" or "fan-in", got {init!r}')
    if init == "dense" or law.kind == "zeros":
        return law
    full = kaiming_normal(inputs) if law == default_law(inputs) else law
    return FanInLaw("normal", full.std, inputs)


def set_laws(layer: nn.Linear | nn.Conv2d, *, weight: Law, bias: Law | None = None) -> None:
    """Initialise a layer by these laws, now if it is real, and in `sparsify_` if it is on the meta device.

    Args:
        layer: any with a weight and a bias or None.
        weight: of its weight.
        bias: of its bias; None leaves that to torch's default.
    """
    carry(layer, weight, bias)
    _fill(layer)


def carry(module: nn.Module, weight: Law, bias: Law | None) -> None:
    """Put the laws on a module, as the plain attributes that `law_of` reads."""
    vars(module).update(weight_law=weight, bias_law=bias)


def law_of(layer: nn.Module, tensor: Literal["weight", "bias"]) -> Law:
    """The law of a linear or convolutional layer's weight or bias: what it carries, or the default."""
    law = getattr(layer, f"{tensor}_law", None)
    return law if isinstance(law, Law) else default_law(layer.get_parameter("weight")[0].numel())


def reset_(module: nn.Module) -> None:
    """`module.reset_parameters()`, and what the laws that it carries say."""
    module.reset_parameters()  # type: ignore[operator]
    _fill(module)


def _fill(module: nn.Module) -> None:
    for name in ("weight", "bias"):
        law, tensor = getattr(module, f"{name}_law", None), getattr(module, name, None)
        if isinstance(law, Law) and isinstance(tensor, Tensor):
            law.fill_(tensor)
