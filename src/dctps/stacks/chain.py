"""A network as a chain of layers, each fed by the one before, and refusals of what is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from dctps.nn import DpSConv2d, DpSLayer, DpSLinear
from dctps.offsets import Offset, ZeroOffset
from dctps.subspace import Hyperplane

# Without parameters or state, and each channel by itself: what they do to R networks' channels side by side
# is what they do to each network's.
_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MAPS = (
    *_POOLS, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh,
    nn.Hardswish, nn.Softplus, nn.Identity,
)  # fmt: skip
_REMEDY = "train it by itself"
_SHAPES = (
    "images, and stacked networks have their linear layers behind a flattening",
    "what has been flattened",
)


class NotAChain(ValueError):  # noqa: N818
    """The network is no chain of layers that can be stacked; the message names the first that cannot."""


class Geometry(NamedTuple):
    """What the weighted layers at one place of several networks have in common.

    `shape` is that of the weight, (out, in) or (out, in / groups, rows, columns); `bias` says whether there
    is one; `edges` are zeros around the image: left, right, top, bottom. (`product.geometry` has neither.)
    """

    shape: tuple[int, ...]
    bias: bool
    stride: tuple[int, int] = (1, 1)
    edges: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Link:
    """One layer of a chain, with its qualified name; a map is an activation or a pool."""

    name: str
    kind: Literal["weighted", "flatten", "map"]
    module: nn.Module
    geometry: Geometry | None = None

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for layers that may stand at one place of stacked networks."""
        return self.name, self.kind, self.geometry or repr(self.module)

    @property
    def takes_flat(self) -> bool | None:
        """Whether it takes vectors, not images; None: both."""
        if self.geometry is not None:
            return len(self.geometry.shape) == 2
        return False if self.kind == "flatten" or isinstance(self.module, _POOLS) else None


def chain_of(model: nn.Module) -> list[Link]:
    """The layers of a converted or dense network, or one on a hyperplane, in their order.

    Raises:
        NotAChain: something in it is no convolution, linear layer, activation, pool or flattening, or its
            layers branch.
    """
    network = model.network if isinstance(model, Hyperplane) else model
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError) as error:
        raise NotAChain(f"{type(network).__name__} is no chain of layers ({error}): {_REMEDY}") from None
    links: list[Link] = []
    last: fx.Node | None = None
    flat = False
    for node in graph.nodes:
        if node.op == "output":
            if node.args[0] is not last:
                raise NotAChain(f"{type(network).__name__} returns more than its last layer's: {_REMEDY}")
            continue
        if node.op == "placeholder" and last is None:
            last = node
            continue
        if node.op != "call_module" or node.args != (last,) or node.kwargs:
            raise NotAChain(f"{_where(node, network)} is no layer fed by the one before it alone: {_REMEDY}")
        link = _link(str(node.target), network.get_submodule(str(node.target)))
        if flat != link.takes_flat and link.takes_flat is not None:
            raise NotAChain(f"{_where(node, network)} takes {_SHAPES[flat]}: {_REMEDY}")
        flat = flat or link.kind == "flatten"
        links.append(link)
        last = node
    if not flat:
        raise NotAChain(f"{type(network).__name__} ends in images, not in logits: {_REMEDY}")
    names = [link.name for link in links]
    if twice := [name for name in names if names.count(name) > 1]:
        raise NotAChain(f"layer {twice[0]!r} is used twice: {_REMEDY}")
    if not any(link.kind == "weighted" for link in links):
        raise NotAChain(f"{type(network).__name__} has no convolution and no linear layer: {_REMEDY}")
    used = {id(parameter) for link in links for parameter in link.module.parameters()}
    if unused := [name for name, parameter in network.named_parameters() if id(parameter) not in used]:
        raise NotAChain(f"parameter {min(unused)!r} is of none of the layers in the chain: {_REMEDY}")
    return links


def offset_of(module: nn.Module) -> Offset | None:
    """D of a converted layer; None for a dense one and under `zero`."""
    offset = module.offset if isinstance(module, DpSLayer) else None
    return None if isinstance(offset, ZeroOffset) else offset


def index_of(dense: Tensor, distinct: list[Tensor]) -> int:
    """Where in `distinct` a D of the same numbers stands, whatever its seed; it is added if there is none."""
    for index, other in enumerate(distinct):
        if torch.equal(dense, other):
            return index
    distinct.append(dense)
    return len(distinct) - 1


class _Tracer(fx.Tracer):  # type: ignore[misc, no-any-unimported, unused-ignore]
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DpSLayer | nn.BatchNorm2d) or bool(
            super().is_leaf_module(m, module_qualified_name)
        )


def _link(name: str, module: nn.Module) -> Link:
    where = f"layer {name!r} ({type(module).__name__})"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in hooks):
        raise NotAChain(f"{where} has hooks, which stacked networks do not call: {_REMEDY}")
    if type(module) in (nn.Linear, DpSLinear):
        shape = (module.out_features, module.in_features)
        return Link(name, "weighted", module, Geometry(shape, module.bias is not None))  # type: ignore[arg-type]
    if type(module) in (nn.Conv2d, DpSConv2d):
        return Link(name, "weighted", module, _convolution(where, module))  # type: ignore[arg-type]
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Link(name, "flatten", module)
    if type(module) in _MAPS and not getattr(module, "return_indices", False):
        return Link(name, "map", module)
    raise NotAChain(
        f"{where} cannot be stacked, only convolutions, linear layers, activations, pools and flattening "
        f"can: {_REMEDY}"
    )


def _convolution(where: str, module: nn.Conv2d | DpSConv2d) -> Geometry:
    if module.padding_mode != "zeros":
        raise NotAChain(f"{where} pads by {module.padding_mode!r}, stacked networks by zeros: {_REMEDY}")
    edges = module._edges if isinstance(module, DpSConv2d) else module._reversed_padding_repeated_twice
    return Geometry(
        (module.out_channels, module.in_channels // module.groups, *module.kernel_size),
        module.bias is not None,
        tuple(module.stride),  # type: ignore[arg-type]
        tuple(edges),  # type: ignore[arg-type]
        tuple(module.dilation),  # type: ignore[arg-type]
        module.groups,
    )


def _where(node: fx.Node, network: nn.Module) -> str:
    if node.op == "call_module":
        return f"layer {node.target!r} ({type(network.get_submodule(str(node.target))).__name__})"
    return f"the step {node.name!r} of {type(network).__name__}"
