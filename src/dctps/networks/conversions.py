"""Classes that are written in plain layers: torch's attention, and Hugging Face's `Conv1D` of GPT-2.

Each has a function into plain layers, which share memory with the original, and one back.
"""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import Tensor, nn

from dctps.initial import ZEROS, Law, carry, default_law
from dctps.networks.conversion import register_conversion
from dctps.nn.attention import DpSMultiheadAttention


def _as_packed(attention: nn.Module) -> nn.MultiheadAttention:
    """torch's attention with the same weights, the three of the inputs packed again."""
    assert isinstance(attention, DpSMultiheadAttention)
    inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
    packed = nn.MultiheadAttention(
        attention.embed_dim,
        attention.num_heads,
        attention.dropout,
        bias=attention.out_proj.bias is not None,
        add_zero_attn=attention.add_zero_attn,
        kdim=attention.kdim,
        vdim=attention.vdim,
        batch_first=attention.batch_first,
        device="meta",
    )
    weights, biases = ([_detached(layer, name) for layer in inputs] for name in ("weight", "bias"))
    if packed._qkv_same_embed_dim:
        packed.in_proj_weight = _parameter(torch.cat(weights), inputs, "weight")
    else:
        for name, weight, layer in zip(_SEPARATE, weights, inputs, strict=True):
            setattr(packed, name, _parameter(weight, (layer,), "weight"))
    if packed.in_proj_bias is not None:
        packed.in_proj_bias = _parameter(torch.cat(biases), inputs, "bias")
    packed.out_proj.weight, packed.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias  # type: ignore[assignment]
    packed.bias_k, packed.bias_v = attention.bias_k, attention.bias_v
    return packed


_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@register_conversion(nn.MultiheadAttention, collapse=_as_packed)
def _of_packed(attention: nn.Module) -> DpSMultiheadAttention:
    """Linear layers that share the packed weights' memory."""
    assert isinstance(attention, nn.MultiheadAttention)
    packed = attention._qkv_same_embed_dim
    names = ("in_proj_weight",) if packed else _SEPARATE
    if any(name not in attention._parameters for name in names) or (
        "weight" not in attention.out_proj._parameters
    ):
        raise ValueError("a weight of it is made by a hook or parametrised: make it permanent first")
    weights = _thirds(attention.in_proj_weight) if packed else [getattr(attention, name) for name in names]
    biases = [None] * 3 if attention.in_proj_bias is None else _thirds(attention.in_proj_bias)
    # torch draws packed weights as one matrix, with three times the outputs (Xavier, uniform).
    fans = [attention.in_proj_weight.shape if packed else weight.shape for weight in weights]
    laws = [Law("uniform", math.sqrt(2 / sum(shape))) for shape in fans]
    q, k, v = (_linear(weight, bias, law) for weight, bias, law in zip(weights, biases, laws, strict=True))
    return DpSMultiheadAttention(
        q,
        k,
        v,
        _linear(attention.out_proj.weight, attention.out_proj.bias, default_law(attention.embed_dim)),
        attention.num_heads,
        dropout=attention.dropout,
        bias_k=attention.bias_k,
        bias_v=attention.bias_v,
        add_zero_attn=attention.add_zero_attn,
        batch_first=attention.batch_first,
    )


def _linear(weight: Tensor, bias: Tensor | None, weight_law: Law) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    carry(layer, weight_law, ZEROS)
    return layer


def _thirds(packed: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part, packed.requires_grad) for part in packed.detach().chunk(3)]


def _detached(layer: nn.Module, name: str) -> Tensor:
    tensor = getattr(layer, name)
    return torch.empty(0) if tensor is None else tensor.detach()


def _parameter(tensor: Tensor, layers: tuple[nn.Module, ...], name: str) -> nn.Parameter:
    return nn.Parameter(tensor, any(layer.get_parameter(name).requires_grad for layer in layers))


def _as_transposed(layer: nn.Module) -> nn.Module:
    weight = layer.get_parameter("weight")
    with torch.device("meta"):
        transposed: nn.Module = import_module("transformers.pytorch_utils").Conv1D(*weight.shape)
    transposed.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    transposed.bias = layer.bias
    return transposed


@register_conversion("transformers.pytorch_utils.Conv1D", collapse=_as_transposed)
def _of_transposed(transposed: nn.Module) -> nn.Linear:
    weight = transposed.get_parameter("weight")
    layer = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    layer.weight = nn.Parameter(weight.detach().T, weight.requires_grad)
    layer.bias = transposed.get_parameter("bias")
    carry(layer, Law("normal", 0.02), ZEROS)
    return layer
