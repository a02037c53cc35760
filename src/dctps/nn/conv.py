"""The convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.nn.layer import Alpha, DpSLayer
from dctps.offsets import OffsetChoice
from dctps.product.function import dps_conv2d

_OPTIONS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


class DpSConvolution(DpSLayer):
    """What convolutions along one axis and along two share: their options."""

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str

    def _take_options(self, like: nn.Conv1d | nn.Conv2d) -> None:
        """Those of a dense layer, which has checked and normalised them."""
        for name in _OPTIONS:
            setattr(self, name, getattr(like, name))
        self._edges: list[int] = list(like._reversed_padding_repeated_twice)

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The batch x, padded where the kernel cannot do it, and the padding that is left to the kernel."""
        edges = self._edges  # before and after, the last axis first
        if self.padding_mode != "zeros":
            return F.pad(x, edges, mode=self.padding_mode), (0,) * (len(edges) // 2)
        if edges[::2] == edges[1::2]:
            return x, tuple(edges[-2::-2])
        return F.pad(x, edges), (0,) * (len(edges) // 2)

    @classmethod
    def _arguments_of(cls, dense: nn.Module) -> dict[str, Any]:
        return {**{name: getattr(dense, name) for name in _OPTIONS}, "bias": dense.bias is not None}

    def extra_repr(self) -> str:
        """Shape, options away from their defaults, offset and density."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        axes = len(self.kernel_size)
        options = {"padding": (0,) * axes, "dilation": (1,) * axes, "groups": 1, "padding_mode": "zeros"}
        for option, default in options.items():
            value = getattr(self, option)
            text += f", {option}={value!r}" if value != default else ""
        return f"{text}, bias={self.bias is not None}, {self._state_repr()}"


class DpSConv2d(DpSConvolution):
    """`nn.Conv2d` with W = alpha * D + S, each patch x giving alpha * D x + S x + b.

        >>> layer = DpSConv2d(16, 32, 3, padding="same", groups=2, density=0.01, offset="sdct")
        >>> layer(torch.ones(1, 16, 8, 8)).shape, layer.nnz
        (torch.Size([1, 32, 8, 8]), 23)

    Args:
        in_channels: of all groups.
        out_channels: of all groups.
        kernel_size: one number or (rows, columns); so are `stride` and `dilation`.
        stride: see `nn.Conv2d`.
        padding: numbers, `"same"` or `"valid"`.
        dilation: see `nn.Conv2d`.
        groups: divides both channel counts.
        bias: whether to add b.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        offset: D: a name, a class or an `Offset`, as in `DpSLinear`; so are all arguments that follow.
        density: fraction of the weights that train; or
        nnz: their number; or
        support: which: a bool mask of the weight's shape, or flat row-major positions.
        alpha: initial alpha.
        alpha_trainable: whether alpha is trained.
        seed: of what is drawn.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: arguments that `nn.Conv2d` refuses, or as for `DpSLinear`.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        offset: OffsetChoice = "dct",
        density: float | None = None,
        nnz: int | None = None,
        support: Tensor | None = None,
        alpha: Alpha = "one",
        alpha_trainable: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # torch checks and normalises the arguments; its weight is on the meta device and costs nothing.
        like = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            False,
            padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        self._take_options(like)
        self._build(
            tuple(like.weight.shape),
            groups=groups,
            bias=bias,
            offset=offset,
            density=density,
            nnz=nnz,
            support=support,
            alpha=alpha,
            alpha_trainable=alpha_trainable,
            seed=seed,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, rows, columns) -> (batch, out_channels, rows', columns'), batched or not."""
        x = self._checked(x)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"expected an input of shape (batch, {self.in_channels}, height, width), got {tuple(x.shape)}"
            )
        images, padding = self.padded(x if x.dim() == 4 else x.unsqueeze(0))
        y = dps_conv2d(
            images,
            self.values,
            self.support,
            self.offset,
            self.alpha,
            self.bias,
            stride=self.stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            backend=self.backend,
        )
        return y if x.dim() == 4 else y.squeeze(0)

    def merged(self) -> nn.Conv2d:
        """The `nn.Conv2d` with the weight `to_dense()`."""
        dense = nn.Conv2d(**self._arguments_of(self), device="meta")
        self._merge_into(dense)
        return dense
