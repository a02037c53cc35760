"""P, the map from d dimensions to a network's D parameters: drawn from a seed, with columns of norm 1."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch import library as torch_library
from torch.autograd import Function

from dctps.arguments import whole
from dctps.names import Registry
from dctps.transforms.tables import constant_to_compilers, making_constants

DENSE_LIMIT = 10**8  # entries of a dense P that "auto" takes: 400 MB in float32
DRAWN_AT_ONCE = 1 << 14  # numbers whose scratch stays in a core's cache, which is four times faster


class Projection:
    """A linear map from `dimensions` to `size` numbers, fixed by its name, these two and a seed.

    A subclass has `apply`, `adjoint` and `held_bytes`, and draws its tables in `_draw`. Calling a
    projection is differentiable: derivatives are products with P and its transpose, of every order.

    Args:
        size: D, the numbers that it gives.
        dimensions: d, the numbers that it takes, from 1 to D.
        seed: of the draws, any integer.

    Raises:
        ValueError: dimensions outside 1..size.

    Reference: Li et al., "Measuring the Intrinsic Dimension of Objective Landscapes", ICLR 2018, section
    2 and supplement S7.
    """

    name: ClassVar[str]

    def __init__(self, size: int, dimensions: int, seed: int = 0) -> None:
        if not 1 <= dimensions <= size:
            raise ValueError(
                f"dimensions must be from 1 to the number of parameters, {size}, got {dimensions}: "
                f"a hyperplane of more has no use"
            )
        self.size, self.dimensions, self.seed = size, dimensions, whole("seed", seed)
        self._held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    @property
    def spec(self) -> dict[str, Any]:
        """All that P depends on, ready for JSON, so that `build_projection(**spec)` builds it again."""
        return {name: getattr(self, name) for name in ("name", "size", "dimensions", "seed")}

    def __call__(self, v: Tensor) -> Tensor:
        """P v, (size,), of (dimensions,); in float32 at least. Differentiable."""
        return self._product(v, transposed=False)

    def transpose(self, g: Tensor) -> Tensor:
        """P^T g, (dimensions,), of (size,); in float32 at least. Differentiable."""
        return self._product(g, transposed=True)

    def apply(self, v: Tensor) -> Tensor:
        """P v, without derivatives, for float32 or float64."""
        raise NotImplementedError

    def adjoint(self, g: Tensor) -> Tensor:
        """P^T g, without derivatives, for float32 or float64."""
        raise NotImplementedError

    def held_bytes(self, itemsize: int = 4) -> int:
        """Bytes of the tables that are held from the first use on, for vectors of numbers of this size."""
        raise NotImplementedError

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """P as (size, dimensions), one column after the other: for tests and a look."""
        return torch.stack([self.apply(e) for e in torch.eye(self.dimensions, dtype=dtype, device=device)], 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}x{self.dimensions}, seed={self.seed})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Projection) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash((self.name, self.size, self.dimensions, self.seed))

    def __deepcopy__(self, memo: dict[int, Any]) -> Projection:
        return self  # it never changes, and its tables may be large

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def _draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The tables."""
        raise NotImplementedError

    def _drawn(self, like: Tensor) -> tuple[Tensor, ...]:
        """The tables for vectors as this one; tables for another device or dtype are dropped."""
        key = (like.device, like.dtype)
        if key not in self._held:
            self._held.clear()
            with making_constants():
                self._held[key] = self._draw(*key)
        return self._held[key]

    def _product(self, x: Tensor, *, transposed: bool) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        product: Tensor
        if torch.compiler.is_compiling():
            product = torch.ops.dctps.projected(wide, _spec(self), self.size, self.dimensions, transposed)
        else:
            product = _Product.apply(wide, self, transposed)
        return product


class _Product(Function):
    """P v or P^T g; each is the derivative of the other."""

    @staticmethod
    def forward(x: Tensor, projection: Projection, transposed: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return projection.adjoint(x) if transposed else projection.apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.projection, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _Product.apply(g, ctx.projection, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        moved: Tensor = _Product.apply(tangent, ctx.projection, ctx.transposed)
        return moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        x, projection, transposed = args
        rows = x.movedim(in_dims[0], 0)
        return torch.stack([_Product.apply(row, projection, transposed) for row in rows]), 0


# One torch operator for `torch.compile`, which need not see inside a product.
_library = torch_library.Library("dctps", "FRAGMENT")
_library.define("projected(Tensor x, str spec, int size, int dimensions, bool transposed) -> Tensor")

# By their specs, so that the compiled network and the model share the tables of one.
_in_use: WeakValueDictionary[str, Projection] = WeakValueDictionary()


@constant_to_compilers
def _spec(projection: Projection) -> str:
    text = json.dumps(projection.spec)
    _in_use[text] = projection
    return text


@torch_library.impl(_library, "projected", "CompositeExplicitAutograd")
def _projected(x: Tensor, spec: str, size: int, dimensions: int, transposed: bool) -> Tensor:
    return _Product.forward(x, _in_use[spec], transposed)


@torch_library.register_fake("dctps::projected", lib=_library)  # type: ignore[untyped-decorator]
def _projected_fake(x: Tensor, spec: str, size: int, dimensions: int, transposed: bool) -> Tensor:
    return x.new_empty(dimensions if transposed else size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.constants, ctx.transposed = inputs


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.dctps.projected(g, *ctx.constants, not ctx.transposed), None, None, None, None


torch_library.register_autograd("dctps::projected", _backward, setup_context=_setup_context, lib=_library)


PROJECTIONS: Registry[type[Projection]] = Registry("projection", reserved=("auto",), names_classes=True)


def register_projection(name: str) -> Callable[[type[Projection]], type[Projection]]:
    """Class decorator that gives a `Projection` subclass its name; a ValueError where it is taken."""
    return PROJECTIONS.register(name)


def build_projection(name: str, size: int, dimensions: int, seed: int = 0) -> Projection:
    """The projection called `name`.

    Args:
        name: `"dense"`, `"sparse"`, `"fastfood"`, or `"auto"`: dense while P has at most 10^8 entries
            (10,000 dimensions in as many parameters), Fastfood above.
        size: D, the parameters.
        dimensions: d, from 1 to D.
        seed: of the draws.

    Raises:
        ValueError: an unknown name (the message gives the nearest), or dimensions outside 1..size.
    """
    size, dimensions = whole("size", size), whole("dimensions", dimensions)
    if name == "auto":
        name = "dense" if size * dimensions <= DENSE_LIMIT else "fastfood"
    return PROJECTIONS.find(name)(size, dimensions, seed)
