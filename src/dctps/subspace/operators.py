"""A projection's products as one torch operator, for `torch.compile`, which need not see inside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dctps.transforms.tables import constant_to_compilers

if TYPE_CHECKING:
    from dctps.subspace.projection import Projection

_library = torch.library.Library("dctps", "FRAGMENT")
_library.define("projected(Tensor x, str spec, int size, int dimensions, bool transposed) -> Tensor")

# By their specs, so that the compiled network and the model share the tables of one.
_in_use: WeakValueDictionary[str, Projection] = WeakValueDictionary()


def compiled_product(x: Tensor, projection: Projection, *, transposed: bool) -> Tensor:
    """P x, or P^T x if `transposed`, as one operator with derivatives."""
    sizes = projection.size, projection.dimensions
    product: Tensor = torch.ops.dctps.projected(x, _spec(projection), *sizes, transposed)
    return product


@constant_to_compilers
def _spec(projection: Projection) -> str:
    text = json.dumps(projection.spec)
    _in_use[text] = projection
    return text


@torch.library.impl(_library, "projected", "CompositeExplicitAutograd")
def _projected(x: Tensor, spec: str, size: int, dimensions: int, transposed: bool) -> Tensor:
    projection = _in_use[spec]
    with torch.autocast(x.device.type, enabled=False):
        return projection.adjoint(x) if transposed else projection.apply(x)


@torch.library.register_fake("dctps::projected", lib=_library)  # type: ignore[untyped-decorator]
def _projected_fake(x: Tensor, spec: str, size: int, dimensions: int, transposed: bool) -> Tensor:
    return x.new_empty(dimensions if transposed else size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.constants, ctx.transposed = inputs


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    by_x = torch.ops.dctps.projected(g, *ctx.constants, not ctx.transposed)
    return by_x, None, None, None, None


torch.library.register_autograd("dctps::projected", _backward, setup_context=_setup_context, lib=_library)
