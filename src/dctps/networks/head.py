"""A network that begins with the same score for every class."""

from __future__ import annotations

import torch
from torch import nn

from dctps.nn import DpSLayer

_KINDS = DpSLayer, nn.Linear, nn.Conv1d, nn.Conv2d


@torch.no_grad()
def zero_head_(model: nn.Module, name: str | None = None) -> nn.Module:
    """Let the classifier begin at W = 0 and b = 0, in place, so that the first loss of C classes is ln C.

    Of a DpS layer alpha becomes 0 and S stays 0, or without an offset the values become 0; everything that
    trained before still trains. Otherwise the classifier's outputs are as large as its inputs are, which
    under an offset without a norm behind it may be a loss of 4 to 40 where ln C = 2.3: the first steps then
    go to making it smaller, and in deep networks they cost most of what the batch tells apart.

    Args:
        model: any module, converted (then call this after `sparsify_`) or dense.
        name: the classifier's; None for the layer that was registered last.

    Returns:
        the model.

    Raises:
        ValueError: there is no such layer, or it is none that this library converts.

    Reference: Zhang, Dauphin and Ma, "Fixup Initialization", ICLR 2019, rule 1.
    """
    layers = {found: module for found, module in model.named_modules() if isinstance(module, _KINDS)}
    if not layers or (name is not None and name not in layers):
        wanted = "no linear or convolutional layer" if name is None else f"no layer {name!r}"
        raise ValueError(f"there is {wanted} to begin at zero: the layers are {', '.join(layers) or 'none'}")
    head = layers[name or list(layers)[-1]]
    zeros = [head.bias]
    if isinstance(head, DpSLayer):
        zeros.append(head.values if head.alpha is None else head.alpha)
    else:
        zeros.append(head.weight)
    for tensor in zeros:
        if tensor is not None:
            tensor.zero_()
    return model
