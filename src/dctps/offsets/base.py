"""What an offset promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dctps.arguments import whole
from dctps.gpu.products import Products
from dctps.kernels import Filters, depthwise_filters
from dctps.offsets.factors import Factors
from dctps.transforms.tables import as_seen, constant_to_compilers, making_constants

T = TypeVar("T")

_MAX_MEMO = 256  # keys, of a few numbers each


class Offset(ABC):
    """A fixed linear map D that is applied, never stored.

    For a weight of shape (m, *rest) in `groups` groups, with n = prod(rest) inputs per output, D is
    block-diagonal: group g maps its own n inputs to its own m / groups outputs. A convolution's n
    inputs are one patch in torch's order (channel, row, column), as `F.unfold` gives them.

    An offset has no parameters, holds at most O(m + n) numbers, and is rebuilt from `spec`. Subclasses
    implement `to_dense`; those with a fast transform override `apply`, `adjoint` and `row_cost`.

    Args:
        shape: of the weight, (m, n) or (m, in_channels / groups, kh, kw).
        groups: of a convolution; divides m.
        seed: of the offset's draws, where it has any.
        layer: qualified name of the layer; keys the draws together with the seed.

    Raises:
        ValueError: the shape or the groups are not a layer's.
    """

    name: ClassVar[str]
    defined: ClassVar[WeakValueDictionary[str, type[Offset]]] = WeakValueDictionary()
    draws: ClassVar[int] = 0  # index tables that `_draw` makes

    def __init_subclass__(cls) -> None:
        # A class has a name of its own before it is registered, so that a spec never means another class.
        cls.name = f"{cls.__module__}.{cls.__qualname__}"
        Offset.defined[cls.name] = cls

    def __init__(self, shape: Sequence[int], *, groups: int = 1, seed: int = 0, layer: str = "") -> None:
        self.shape = tuple(whole("a size of the weight", size) for size in shape)
        groups = whole("groups", groups)
        self.groups, self.seed, self.layer = groups, whole("seed", seed), layer
        self._held: dict[Hashable, tuple[Tensor, ...]] = {}
        self._memo: dict[Any, Any] = {}
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"an offset needs a weight shape (out, in, ...) of positive sizes, got {shape}")
        if groups < 1 or self.shape[0] % groups:
            raise ValueError(f"groups={groups} must divide the {self.shape[0]} outputs")

    @property
    def out_features(self) -> int:
        """The outputs m of all groups."""
        return self.shape[0]

    @property
    def in_features(self) -> int:
        """The inputs n of one output."""
        return math.prod(self.shape[1:])

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-ready arguments of `build_offset` that rebuild this offset."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "groups": self.groups,
            "seed": self.seed,
            "layer": self.layer,
        }

    def like(self, shape: Sequence[int], *, groups: int = 1, layer: str = "") -> Offset:
        """The offset of the same class, options and seed for another weight; arguments as for the class."""
        options = {key: value for key, value in self.spec.items() if key != "name"}
        return type(self)(**options | {"shape": shape, "groups": groups, "layer": layer})

    @property
    def row_cost(self) -> float:
        """Estimated time of `apply` for each input row, in nanoseconds on one core; inf: no fast transform.

        The layers weigh it against the dense kernel (`product/rule.py`); only ratios matter.
        """
        return math.inf

    @abstractmethod
    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """D as a tensor of the weight's shape, computed in `dtype` (float32 or float64)."""

    def apply(self, x: Tensor) -> Tensor:
        """D x.

        Args:
            x: float32 or float64, shape (*, groups * n).

        Returns:
            shape (*, m), of x's dtype and device.
        """
        blocks = self._blocks(x)
        return torch.einsum("...gn,gon->...go", x.unflatten(-1, (self.groups, -1)), blocks).flatten(-2)

    def adjoint(self, y: Tensor) -> Tensor:
        """D^T y: <D x, y> = <x, D^T y>.

        Args:
            y: float32 or float64, shape (*, m).

        Returns:
            shape (*, groups * n), of y's dtype and device.
        """
        blocks = self._blocks(y)
        return torch.einsum("...go,gon->...gn", y.unflatten(-1, (self.groups, -1)), blocks).flatten(-2)

    @property
    def has_filters(self) -> bool:
        """Whether D is a convolution that `filters` describes; depthwise ones of any offset are."""
        return len(self.shape) == 4 and self.shape[1] == 1

    @property
    def filter_cost(self) -> float:
        """Estimated multiply-adds of `filters` for each pixel, in one direction."""
        return 4.0 * self.out_features * math.prod(self.shape[2:])

    def filters(self) -> Filters:
        """A convolution's D as filters on mixed channels, for fast paths; made from tables for the call."""
        outputs = torch.arange(self.out_features, dtype=torch.int32, device="cpu")
        bank = self.to_dense(dtype=torch.float32, device="cpu")
        return depthwise_filters(bank.flatten(1).contiguous(), self.groups, outputs)

    def weight_filters(self) -> Filters:
        """`filters`, or less where no more is needed to make a convolution's weight for the call."""
        return self.filters()

    @property
    def has_factors(self) -> bool:
        """Whether `factors` gives D."""
        return False

    def factors(self, *, dtype: torch.dtype, device: torch.device) -> Factors:
        """D as products of short vectors, for GPUs; the vectors are tables that layers of a shape share."""
        raise NotImplementedError

    @property
    def sides(self) -> tuple[int, int] | None:
        """Of the tile that a row is to `products`; None where there are none."""
        return None

    def products(self, device: torch.device) -> Products:
        """D on rows as small matrix products, for GPUs, where there are `sides`."""
        raise NotImplementedError

    def norm(self) -> float:
        """The Frobenius norm of D."""
        return float(torch.linalg.vector_norm(self.to_dense(dtype=torch.float64)))

    def held_bytes(self) -> int:
        """Bytes of the draws that this one offset holds now, O(m + n)."""
        return sum(t.numel() * t.element_size() for draws in self._held.values() for t in draws)

    def __repr__(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{type(self).__name__}({'x'.join(map(str, self.shape))}{groups})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offset) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash((self.name, self.shape, self.groups, self.seed, self.layer))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}, "_memo": {}}

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, which depends on D and the key alone and is small, once for a key; not saved with D."""
        try:
            return self._memo[key]  # type: ignore[no-any-return]
        except KeyError:
            if len(self._memo) >= _MAX_MEMO:
                self._memo.clear()
            made = self._memo[key] = make()
            return made

    def _draw(self, device: torch.device) -> tuple[Tensor, ...]:
        """The seeded index tables of a subclass that has some, O(m + n) numbers."""
        raise NotImplementedError

    def _drawn(self, device: torch.device) -> tuple[Tensor, ...]:
        """`_draw`, once for each device."""
        return tuple(self._drawn_part(device, i) for i in range(self.draws))

    @constant_to_compilers
    def _drawn_part(self, device: torch.device, part: int) -> Tensor:
        """One of the draws; to a compiler a constant."""
        if device not in self._held:
            with making_constants():
                self._held[device] = self._draw(device)
        return as_seen(self._held[device][part])

    def _derived(
        self, what: str, device: torch.device, make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Index tables that are made from the draws, O(m + n) numbers, once for each device."""
        key = what, device
        if key not in self._held:
            with making_constants():
                self._held[key] = make()
        return self._held[key]

    def _blocks(self, like: Tensor) -> Tensor:
        """D as (groups, m / groups, n)."""
        dense = self.to_dense(dtype=like.dtype, device=like.device)
        return dense.reshape(self.groups, -1, self.in_features)
