"""Attention with each of its four projections a layer of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps.nn.guard import QuietTrace


class DpSMultiheadAttention(QuietTrace):
    """`nn.MultiheadAttention` whose projections are modules, so that each can be a `DpSLinear`.

    softmax(q k^T / sqrt(d) + mask) v for each head of d = embed_dim / num_heads numbers, with
    q = q_proj(query), k = k_proj(key), v = v_proj(value); the heads side by side go through out_proj.
    Called as torch's, with the same results. `sparsify_` makes it from torch's and `merge_` turns it back.

    Args:
        q_proj: linear, from embed_dim to embed_dim; so is `out_proj`.
        k_proj: linear, from kdim to embed_dim.
        v_proj: linear, from vdim to embed_dim.
        out_proj: see `q_proj`.
        num_heads: divides embed_dim.
        dropout: probability for each attention weight, in training.
        bias_k: Parameter (1, 1, embed_dim), one more key for every sequence; and `bias_v` its value.
        bias_v: see `bias_k`.
        add_zero_attn: whether to add a key and a value of zeros.
        batch_first: whether the batch is the first axis, not the second.

    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.
    """

    # torch's fused encoder kernels want all weights at once; layers that see no such bias leave them be.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        out_proj: nn.Module,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias_k: Tensor | None = None,
        bias_v: Tensor | None = None,
        add_zero_attn: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.bias_k, self.bias_v = bias_k, bias_v
        self.num_heads, self.dropout = num_heads, dropout
        self.add_zero_attn, self.batch_first = add_zero_attn, batch_first
        self.embed_dim: int = out_proj.in_features  # type: ignore[assignment]
        self.kdim: int = k_proj.in_features  # type: ignore[assignment]
        self.vdim: int = v_proj.in_features  # type: ignore[assignment]
        self.head_dim = self.embed_dim // num_heads

    def reset_parameters(self) -> None:
        """Draw `bias_k` and `bias_v` as torch does; the projections reset themselves."""
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.xavier_normal_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as `nn.MultiheadAttention.forward` does.

        Args:
            query: (L, embed_dim), (L, N, embed_dim), or (N, L, embed_dim) under `batch_first`.
            key: (S, kdim), with the batch as for `query`.
            value: (S, vdim), likewise.
            key_padding_mask: (N, S) or (S,), True for keys to ignore, or numbers to add.
            need_weights: whether to return the weights as well, which is slower.
            attn_mask: (L, S) or (N num_heads, L, S), True where not to attend, or numbers to add.
            average_attn_weights: whether the weights are averaged over the heads.
            is_causal: a hint that `attn_mask` is the causal mask; changes nothing.

        Returns:
            the outputs, shaped as `query`, and the weights (N, L, S) or (N, num_heads, L, S), without N if
            there is no batch; or None.

        Raises:
            ValueError: a mask of another shape, or `is_causal` without one.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: give that too")
        batch_at = None if query.dim() == 2 else 0 if self.batch_first else 1
        q, k, v = (
            project(x).unsqueeze(0) if batch_at is None else project(x).transpose(0, batch_at)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        k, v = self._with_added(k, self.bias_k), self._with_added(v, self.bias_v)
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v))

        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if batch_at is None else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = heads.transpose(1, 2).flatten(-2)
        return self.out_proj(y.squeeze(0) if batch_at is None else y.transpose(0, batch_at)), weights

    def _with_added(self, keys: Tensor, bias: Tensor | None) -> Tensor:
        """(N, S, embed_dim) with the bias and the zeros that all sequences get."""
        parts = [keys]
        if bias is not None:
            parts.append(bias.to(keys.dtype).expand(keys.shape[0], 1, -1))
        if self.add_zero_attn:
            parts.append(keys.new_zeros(keys.shape[0], 1, self.embed_dim))
        return torch.cat(parts, 1) if len(parts) > 1 else keys

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Both masks as numbers to add to the scores (N, num_heads, L, S'); added keys are always seen."""
        total: Tensor | None = None
        batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        if attn_mask is not None:
            shapes = [(queries, keys), (batch * self.num_heads, queries, keys)]
            _check_shape("attn_mask", attn_mask, shapes)
            sizes = (batch, self.num_heads, queries, keys)
            split = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(sizes)
            total = _additive(split, q.dtype)
        if key_padding_mask is not None:
            _check_shape("key_padding_mask", key_padding_mask, [(batch, keys), (keys,)][: 1 + (batch == 1)])
            padding = _additive(key_padding_mask.reshape(batch, 1, 1, keys), q.dtype)
            total = padding if total is None else total + padding
        added = (self.bias_k is not None) + self.add_zero_attn
        return total if total is None or not added else F.pad(total, (0, added))

    @property
    def in_proj_weight(self) -> Any:
        """No tensor: what torch's encoder asks before it takes a fused kernel, which is thereby declined."""
        return _NotFused()


class _NotFused:
    """An operand with an override, which no fused kernel takes."""

    device = torch.device("cpu")

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise TypeError("the projections are layers of their own: q_proj, k_proj, v_proj")


def _check_shape(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if tuple(mask.shape) not in shapes:
        raise ValueError(
            f"{name} must have the shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}"
        )


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a boolean mask is True; a mask of numbers as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    return mask.to(dtype)
