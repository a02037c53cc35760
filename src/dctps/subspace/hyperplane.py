"""A network that trains on a random hyperplane through its initial parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from dctps.identity.identified import Identified
from dctps.networks import merge_
from dctps.networks.replaced import trained, watch_optimizers
from dctps.networks.surgery import Mergeable
from dctps.selection import count_prunable
from dctps.sparse import budget
from dctps.subspace.projection import Projection, build_projection


class Hyperplane(Mergeable, Identified[Projection]):
    """`network` with the parameters theta_0 + P theta_d, of which theta_d alone trains, from 0 on.

    theta_0 are the network's own parameters, frozen in place and in their own names under `network.`;
    parameters that were frozen before have no part in it. P maps onto all of the others together, weights and
    biases, in the order of `named_parameters()`, each flat and row-major. Buffers, such as BatchNorm's
    statistics, go on as in any network. It holds theta_0, theta_d, what P holds (`projection.held_bytes()`),
    and for one forward and backward pass the D parameters and their gradient.

    Args:
        network: any module.
        projection: P, of as many rows as the network has trainable numbers.

    Attributes:
        theta_d: the dimensions, (d,), the only parameter that trains; float32 or float64.

    Raises:
        ValueError: a network that cannot be projected, or a projection of another size.

    Reference: Li et al., "Measuring the Intrinsic Dimension of Objective Landscapes", ICLR 2018, section 2.
    """

    def __init__(self, network: nn.Module, projection: Projection) -> None:
        super().__init__()
        trained = _trained(network)
        if (size := _count(trained)) != projection.size:
            raise ValueError(f"the projection has {projection.size} rows and the network {size} parameters")
        first = next(iter(trained.values()))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.network = network
        self.theta_d = nn.Parameter(torch.zeros(projection.dimensions, dtype=dtype, device=first.device))
        self._sizes = {name: parameter.numel() for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.requires_grad_(False)
        self._identify(projection, first.device)
        self.seal(self.last_map)

    @property
    def projection(self) -> Projection:
        """P, as the state names it; a ValueError where this library has not written the state."""
        return self._current()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output with its parameters on the hyperplane."""
        return functional_call(self.network, self.parameters_on_hyperplane(), args, kwargs)

    def parameters_on_hyperplane(self) -> dict[str, Tensor]:
        """theta_0 + P theta_d by the network's names, differentiable."""
        pieces = self.projection(self.theta_d).split(list(self._sizes.values()))
        starts = dict(self.network.named_parameters())  # plain tensors within a functional_call
        return {
            name: starts[name] + piece.reshape(starts[name].shape).to(starts[name].device, starts[name].dtype)
            for name, piece in zip(self._sizes, pieces, strict=True)
        }

    @property
    def moved(self) -> list[str]:
        """Names of the network's parameters that P moves, in P's order."""
        return list(self._sizes)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the network as a plain one, which trains all of theta_0 + P theta_d."""
        network = copy.deepcopy(self.network)
        for name, moved in self.parameters_on_hyperplane().items():
            network.get_parameter(name).copy_(moved).requires_grad_(True)
        return merge_(network)

    def extra_repr(self) -> str:
        """What P is."""
        p = self.last_map
        return f"{p.name} projection, {p.dimensions} dimensions of {p.size}, seed={p.seed}"

    def _rebuild(self, spec: dict[str, Any]) -> Projection:
        try:
            projection = build_projection(**spec)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the projection that the state names is unreadable ({error})") from None
        own = self.last_map
        if (projection.size, projection.dimensions) != (own.size, own.dimensions):
            raise ValueError(f"it has {own!r}, the state names {projection!r}")
        return projection


def project_(
    model: nn.Module,
    dimensions: int | None = None,
    *,
    density: float | None = None,
    projection: str = "auto",
    seed: int = 0,
) -> Hyperplane:
    """Let `model` train on a random hyperplane of `dimensions` through its parameters: theta_0 + P theta_d.

    Args:
        model: any module with its initial parameters; they are frozen in place. What does not require a
            gradient has no part in it.
        dimensions: d, from 1 to the number of its parameters.
        density: in place of dimensions, d = round(density * N), N the prunable weights that `sparsify_`
            counts: the same budget, to be compared with.
        projection: `"dense"`, normal numbers with columns of norm 1; `"sparse"`, a share of 1 / sqrt(D) of
            random signs; `"fastfood"`, structured and never stored; `"auto"`, dense while P has at most 10^8
            entries (400 MB), else fastfood.
        seed: of P.

    Returns:
        the network to train, of which `parameters()` that require a gradient are `theta_d`. `merge_` makes a
        plain one of it.

    Raises:
        ValueError: neither or both of dimensions and density, dimensions out of range, or a network that
            cannot be projected.

    Reference: Li et al., "Measuring the Intrinsic Dimension of Objective Landscapes", ICLR 2018.
    """
    if (dimensions is None) == (density is None):
        raise ValueError("give either dimensions or density")
    size = _count(_trained(model))
    if dimensions is None:
        assert density is not None
        dimensions = budget(density, count_prunable(model))
        if dimensions == 0:
            raise ValueError(f"a density of {density} leaves no dimension to train: give a higher one")
    before = trained(model)
    moved = Hyperplane(model, build_projection(projection, size, dimensions, seed))
    watch_optimizers(before, moved, "project_")
    return moved


def _count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, all of which can move along a hyperplane."""
    if any(isinstance(module, Hyperplane) for module in network.modules()):
        raise ValueError("the network is on a hyperplane already: merge_ makes it a plain one")
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient")
    for name, parameter in trained.items():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} is lazy: call the model once, so that its shape is known")
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device, and a hyperplane passes through its first "
                f"values: build the model for real"
            )
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {name!r} is {parameter.dtype}: freeze it with requires_grad_(False)")
    return trained
