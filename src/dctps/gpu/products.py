"""What the kernels on rows take for D; `offsets/products.py` makes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Products(NamedTuple):
    """D on rows as two small matrix products: Y = Re(T * (F v)) G of each row's tile v.

    Attributes:
        sides: a and b; q = a b.
        first: F, float32 (parts, a, a), of one part where it is real, else of a real and an imaginary one.
        between: T, float32 (2, a, b), or None.
        last: G, float32 (parts, b, b).
        signs: of the inputs, int8 (blocks, n); None: one block without signs.
        order: int32 (blocks, q), the output of each entry of each block's Y; m: of none. None: in order.
    """

    sides: tuple[int, int]
    first: Tensor
    between: Tensor | None
    last: Tensor
    signs: Tensor | None = None
    order: Tensor | None = None

    @property
    def blocks(self) -> int:
        """How many transforms make D x."""
        return 1 if self.order is None else len(self.order)
