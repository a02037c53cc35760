"""The linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dctps.arguments import whole
from dctps.nn.layer import Alpha, DpSLayer
from dctps.offsets import OffsetChoice
from dctps.product.function import dps_linear


class DpSLinear(DpSLayer):
    """`nn.Linear` with W = alpha * D + S: y = alpha * D x + S x + b.

        >>> layer = DpSLinear(300, 100, density=0.01)
        >>> layer(torch.ones(5, 300)).shape, layer.nnz
        (torch.Size([5, 100]), 300)

    Args:
        in_features: n.
        out_features: m.
        bias: whether to add b.
        offset: D: a name (`"dct"`, `"sdct"`, `"hadamard"`, `"gaussian"`, `"zero"`), a class of
            offsets, or an `Offset` of the weight's shape.
        density: fraction of the m n weights that train, in [0, 1]: round(density * m * n) of them; or
        nnz: their number; or
        support: which: a bool mask (m, n), or flat row-major positions.
        alpha: initial alpha: `"one"`, `"match"` for the norm of torch's default initialisation, or a number.
        alpha_trainable: whether alpha is trained.
        seed: of a drawn support, a random offset and the bias. Layers alike in shape and seed are
            alike in their draws: give each its own, as `sparsify_` does.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: not exactly one of density, nnz and support, or one that does not fit the weight.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, equation 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        in_features, out_features = whole("in_features", in_features), whole("out_features", out_features)
        self.in_features, self.out_features = in_features, out_features
        self._build(
            (out_features, in_features),
            groups=1,
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
        """Y = alpha * D x + S x + b: (*, in_features) -> (*, out_features)."""
        x = self._checked(x)
        if x.is_nested:
            return self._on_nested(x)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"expected an input of shape (*, {self.in_features}), got {tuple(x.shape)}")
        return dps_linear(
            x, self.values, self.support, self.offset, self.alpha, self.bias, backend=self.backend
        )

    def _on_nested(self, x: Tensor) -> Tensor:
        """The rows of all sequences as one matrix, and the result in sequences of the same lengths."""
        if x.layout == torch.jagged and x.is_contiguous():
            offsets: Tensor = x.offsets()  # type: ignore[attr-defined]
            return torch.nested.nested_tensor_from_jagged(self(x.values()), offsets)
        if x.layout != torch.jagged and x.dim() == 3:
            sequences = x.unbind()
            rows = self(torch.cat(sequences))
            return torch.nested.as_nested_tensor(list(rows.split([len(part) for part in sequences])))
        raise ValueError(
            f"{type(self).__name__} takes nested inputs as nn.Linear does, contiguous jagged ones and "
            f"strided ones of three axes: call .contiguous(), or make it by "
            f"torch.nested.nested_tensor(parts, layout=torch.jagged)"
        )

    @classmethod
    def _arguments_of(cls, dense: nn.Module) -> dict[str, Any]:
        return {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": dense.bias is not None,
        }

    def merged(self) -> nn.Linear:
        """The `nn.Linear` with the weight `to_dense()`."""
        dense = nn.Linear(**self._arguments_of(self), device="meta")
        self._merge_into(dense)
        return dense

    def extra_repr(self) -> str:
        """Shape, bias, offset and density."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, {self._state_repr()}"
