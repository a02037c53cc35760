"""The convolution along one axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dctps.nn.conv import DpSConvolution
from dctps.nn.layer import Alpha
from dctps.offsets import OffsetChoice
from dctps.product.function import dps_conv2d


class DpSConv1d(DpSConvolution):
    """`nn.Conv1d` with W = alpha * D + S: that of `DpSConv2d` with a kernel of one row.

    So D is the offset of the shape (out_channels, in_channels / groups, 1, kernel_size).

        >>> layer = DpSConv1d(16, 32, 3, padding=1, density=0.01)
        >>> layer(torch.ones(4, 16, 20)).shape, layer.nnz
        (torch.Size([4, 32, 20]), 15)

    Args:
        in_channels: of all groups.
        out_channels: of all groups.
        kernel_size: one number or a tuple of one; so are `stride` and `dilation`.
        stride: see `nn.Conv1d`.
        padding: a number, `"same"` or `"valid"`.
        dilation: see `nn.Conv1d`.
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
        ValueError: arguments that `nn.Conv1d` refuses, or as for `DpSLinear`.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
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
        like = nn.Conv1d(
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
        if support is not None and support.dim() == 3:
            support = support.unsqueeze(2)
        self._build(
            self.offset_shape(like),
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
        """(batch, in_channels, length) -> (batch, out_channels, length'), batched or not."""
        x = self._checked(x)
        if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels:
            raise ValueError(
                f"expected an input of shape (batch, {self.in_channels}, length), got {tuple(x.shape)}"
            )
        lines, padding = self.padded(x if x.dim() == 3 else x.unsqueeze(0))
        y = dps_conv2d(
            lines.unsqueeze(-2),
            self.values,
            self.support,
            self.offset,
            self.alpha,
            self.bias,
            stride=(1, self.stride[0]),
            padding=(0, padding[0]),
            dilation=(1, self.dilation[0]),
            backend=self.backend,
        ).squeeze(-2)
        return y if x.dim() == 3 else y.squeeze(0)

    def to_dense(self) -> Tensor:
        """W = alpha * D + S, of shape (out_channels, in_channels / groups, kernel_size)."""
        return super().to_dense().squeeze(2)

    @classmethod
    def offset_shape(cls, dense: nn.Module) -> tuple[int, ...]:
        """(out_channels, in_channels / groups, 1, kernel_size)."""
        outputs, inputs, size = super().offset_shape(dense)
        return outputs, inputs, 1, size

    def merged(self) -> nn.Conv1d:
        """The `nn.Conv1d` with the weight `to_dense()`."""
        dense = nn.Conv1d(**self._arguments_of(self), device="meta")
        self._merge_into(dense)
        return dense
