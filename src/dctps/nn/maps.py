"""What a layer does with W, x W^T on rows or a convolution: its derivatives, and its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dctps.offsets import Offset


@dataclass(frozen=True)
class Linear:
    """x W^T on rows, and its derivatives."""

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on rows, so that a transform applies."""
        return True

    def is_by_strips(self, x: Tensor, offset: Offset) -> bool:
        """Whether the native kernel of convolutions does it, not that of rows."""
        return False

    def count_rows(self, x: Tensor) -> int:
        """How many rows there are in x."""
        return x.shape[0]

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """X with the inputs of one row last."""
        return x

    def from_rows(self, y: Tensor) -> Tensor:
        """Undo `to_rows` on the result."""
        return y

    def spread(self, by_rows: Tensor, x: Tensor) -> Tensor:
        """The transpose of `to_rows`, on a gradient."""
        return by_rows

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Y + b."""
        return y if bias is None else y + bias.to(y.dtype)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with W."""
        return x @ weight.T

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The derivatives in x and W, those that are needed."""
        return g @ weight if need_x else None, g.T @ x if need_weight else None


@dataclass(frozen=True)
class Conv2d:
    """The convolution of x with W, and its derivatives."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def is_rowwise(self, offset: Offset) -> bool:
        """Whether the map is D and S on pixels, so that a transform applies."""
        return offset.shape[2:] == (1, 1) and self.groups == 1 and self.padding == (0, 0)

    def is_by_strips(self, x: Tensor, offset: Offset) -> bool:
        """Whether the native kernel of convolutions does it: rows are better only where x lies in rows."""
        in_rows = x.is_contiguous(memory_format=torch.channels_last) and self.stride == (1, 1)
        return not (in_rows and self.is_rowwise(offset))

    def count_pixels(self, x: Tensor, offset: Offset) -> tuple[int, int, int]:
        """Pixels read, pixels of the result, and those of all phases' strips, zeros too; batch included."""
        batch, rows, columns = x.shape[0], x.shape[2], x.shape[3]
        height, width = (-(-size // by) for size, by in zip((rows, columns), self.stride, strict=True))
        down, across = self.padding
        phases = min(self.stride[0], offset.shape[2]) * min(self.stride[1], offset.shape[3])
        strip = (height + down) * (width + across)
        return batch * rows * columns, batch * height * width, batch * strip * phases

    def count_rows(self, x: Tensor) -> int:
        """How many pixels a 1 x 1 kernel visits."""
        height, width = (-(-size // by) for size, by in zip(x.shape[2:], self.stride, strict=True))
        return x.shape[0] * height * width

    def to_rows(self, x: Tensor, *, strided: bool = True) -> Tensor:
        """The pixels that the kernel visits, channels last."""
        return (x[..., :: self.stride[0], :: self.stride[1]] if strided else x).movedim(1, -1)

    def from_rows(self, y: Tensor) -> Tensor:
        """Channels second again."""
        return y.movedim(-1, 1)

    def spread(self, by_rows: Tensor, x: Tensor) -> Tensor:
        """Each pixel's gradient at its place in x, zeros elsewhere."""
        by_x = torch.zeros_like(x)
        by_x[..., :: self.stride[0], :: self.stride[1]] = by_rows.movedim(-1, 1)
        return by_x

    def add(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Y + b."""
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product with W, plus b."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The derivatives in x and W, those that are needed."""
        by_x, by_weight, _ = torch.ops.aten.convolution_backward.default(
            g,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (need_x, need_weight, False),
        )
        return by_x, by_weight


def flat(x: Tensor) -> Tensor:
    """X as a matrix of rows; itself where it is one, since a view costs time in each direction."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def unflat(rows: Tensor, like: Tensor) -> Tensor:
    """Undo `flat` on a result."""
    return rows if like.dim() == 2 else rows.reshape(*like.shape[:-1], rows.shape[-1])
