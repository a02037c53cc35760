"""Hugging Face's `Conv1D`, the linear layer of GPT-2 with its weight transposed."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from dctps.nn.conversion import register_conversion
from dctps.nn.initial import ZEROS, Law, carry


def _collapse(layer: nn.Module) -> nn.Module:
    weight = layer.get_parameter("weight")
    with torch.device("meta"):
        transposed: nn.Module = import_module("transformers.pytorch_utils").Conv1D(*weight.shape)
    transposed.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    transposed.bias = layer.bias
    return transposed


@register_conversion("transformers.pytorch_utils.Conv1D", collapse=_collapse)
def _expand(transposed: nn.Module) -> nn.Linear:
    weight = transposed.get_parameter("weight")
    layer = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    layer.weight = nn.Parameter(weight.detach().T, weight.requires_grad)
    layer.bias = transposed.get_parameter("bias")
    carry(layer, Law("normal", 0.02), ZEROS)
    return layer
