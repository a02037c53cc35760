"""Singular values of the Jacobian of a network's outputs by its inputs.

With batch norms at fixed statistics no image's outputs depend on another image, and the Jacobian of a batch
is block diagonal: its singular values are those of the images' blocks, classes x inputs each, all together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def freeze_statistics_(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every batch norm these images' mean and (unbiased) variance; the model comes back in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        model.train()
        model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    return model


def jacobian_blocks(model: nn.Module, images: Tensor) -> Tensor:
    """dy_c / dx of each image, (n, classes, numbers in an image): a backward pass for each output.

    The model is in eval mode and gives (n, classes); no image's outputs depend on another image.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)  # their gradients are not wanted
        x = images.detach().requires_grad_()
        y = model(x) + 0 * x.sum()  # there may be no path from the inputs
        rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in y.T]
    finally:
        for p in trained:
            p.requires_grad_()
    return torch.stack(rows, dim=1)


def spectrum(model: nn.Module, images: Tensor) -> Tensor:
    """All singular values of the Jacobian of the batch, n * min(classes, inputs) of them, descending.

    They are float64, and exactly 0 where a block of `jacobian_blocks` is.

    Raises:
        ValueError: the Jacobian is not finite.
    """
    blocks = jacobian_blocks(model, images).double().cpu()
    if not blocks.isfinite().all():
        raise ValueError("the Jacobian is not finite: the network's outputs overflow")
    values: Tensor = torch.linalg.svdvals(blocks)
    return values.flatten().sort(descending=True).values
