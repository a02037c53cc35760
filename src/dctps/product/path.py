"""A path: one way to compute y = alpha * D x + S x + b and its first derivatives.

Each path is one object in one file of `paths/`. To add one (a kernel for another device, say), write its
file, list it in `paths/__init__.py`, name it in the word's row of `rule.py`, give it a row of the contract
test, and fit its constants (`benchmarks/fit_rule.py`). Nothing else knows the paths by name.

Second derivatives, forward-mode derivatives and batches of gradients are taken from a path's `twin`, in
torch operations, so that a path needs first derivatives only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dctps.kernels import variant
from dctps.offsets import Offset
from dctps.product.geometry import ConvGeometry, Geometry, is_channels_last, lies_in_rows
from dctps.product.machine import Machine
from dctps.product.weight import Weight

Needs = tuple[bool, bool, bool, bool]  # of x, values, alpha, bias
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # in the same order


@dataclass(frozen=True, slots=True)
class Call:
    """One product as the rule sees it: kinds and sizes, no numbers.

    Attributes:
        offset: D.
        geometry: rows, or a convolution.
        shape: of x.
        in_rows: whether the inputs of a row or pixel follow each other in memory.
        channels_last: whether x are images in channels-last order only.
        dtype: of x.
        device: its kind: `"cpu"` or `"cuda"`.
        nnz: of S.
        native: whether native CPU code may see the tensors: ordinary ones, none in float64.
        training: whether gradients are wanted.
        threads: of the CPU.
        variant: of the native code: `"avx512"`, `"avx2"`, `"generic"` or `"off"`.
        ordinary: whether the tensors are ones that no transform of torch looks at.
        tf32: whether a GPU may round float32 to TF32 in matrix products.
    """

    offset: Offset
    geometry: Geometry
    shape: tuple[int, ...]
    in_rows: bool
    channels_last: bool
    dtype: torch.dtype
    device: str
    nnz: int
    native: bool
    training: bool
    threads: int
    variant: str
    ordinary: bool = True
    tf32: bool = False

    @classmethod
    def of(
        cls,
        x: Tensor,
        nnz: int,
        offset: Offset,
        geometry: Geometry,
        *,
        native: bool,
        training: bool,
        ordinary: bool = True,
        tf32: bool = False,
    ) -> Call:
        """The call with x, at torch's present number of threads."""
        images = isinstance(geometry, ConvGeometry)
        return cls(
            offset,
            geometry,
            tuple(x.shape),
            not images or lies_in_rows(x),
            images and is_channels_last(x),
            x.dtype,
            x.device.type,
            nnz,
            native and variant() != "off",
            training,
            torch.get_num_threads(),
            variant(),
            ordinary,
            tf32,
        )

    @property
    def rows(self) -> int:
        """Rows of the result: of the batch, or pixels of all images."""
        return self.geometry.count_rows(self.shape)


class Path(ABC):
    """One way to compute the product.

    Attributes:
        name: as `explain` prints it.
        adds_bias: whether `forward` adds b, where all is float32. Otherwise torch adds it afterwards.
        keeps: whether `saved` makes something.
        twin: the path in torch operations whose derivatives may themselves be differentiated.
    """

    name: ClassVar[str]
    adds_bias: ClassVar[bool] = False
    keeps: ClassVar[bool] = False

    @property
    @abstractmethod
    def twin(self) -> Path:
        """See the class."""

    @abstractmethod
    def refusal(self, call: Call) -> str:
        """Why this path cannot take a call; empty if it can."""

    def wins(self, call: Call) -> bool:
        """Whether the rule may choose it where a user does not name it; for limits other than of time."""
        return True

    @abstractmethod
    def terms(self, call: Call) -> Mapping[str, float]:
        """What the time of a call is made of: amounts, each with a constant of the same name in a profile.

        Work that threads share is divided by their number.
        """

    def cost(self, call: Call, machine: Machine) -> float:
        """Estimated nanoseconds of a call; infinite if the machine's profile has no constants for the path.

        Of the forward and backward pass together where gradients are wanted, else of the forward pass.
        """
        constants = machine.constants(self.name, call.training)
        if constants is None:
            return math.inf
        return sum(constants.get(name, 0.0) * amount for name, amount in self.terms(call).items())

    def saved(self, x: Tensor, weight: Weight) -> Tensor | None:
        """What is made before the forward pass and kept for the backward pass, beside x and S."""
        return None

    @abstractmethod
    def forward(
        self, x: Tensor, weight: Weight, geometry: Geometry, bias: Tensor | None, saved: Tensor | None
    ) -> Tensor:
        """y; b is given only to paths that add it."""

    @abstractmethod
    def backward(
        self,
        g: Tensor,
        x: Tensor,
        weight: Weight,
        geometry: Geometry,
        saved: Tensor | None,
        needs: Needs,
    ) -> Gradients:
        """The gradients of x, values, alpha and b where `needs` says so, from g, that of y.

        `saved` may be None although there was something to save: a compiled layer keeps x only.
        """
