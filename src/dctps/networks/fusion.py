"""Batch normalisations that are computed together with what follows them, and plain ones again."""

from __future__ import annotations

from torch import nn

from dctps.fused.norm import FusedBatchNorm2d


def fuse_(model: nn.Module) -> nn.Module:
    """Let each `nn.BatchNorm2d` compute in one pass with the addition and the ReLU behind it, in place.

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> fuse_(model)[1]
        FusedBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)

    Training runs do it. Only the class of the layers changes: modules, parameters, buffers, their names and
    the code around them stay, and numbers are the same to float32 rounding, in training and evaluation.
    What follows a layer is found while the network runs, as a module or a function: ReLU, ReLU6 or hardtanh,
    after an addition or not. Where something else follows, or a hook looks on, the layer computes by itself.
    What gets faster is float32 on the CPU; everything else is left to torch.

    Args:
        model: any module; subclasses of `nn.BatchNorm2d` stay what they are.

    Returns:
        the model.
    """
    return _retyped(model, nn.BatchNorm2d, FusedBatchNorm2d)


def unfuse_(model: nn.Module) -> nn.Module:
    """Undo `fuse_`, in place; `merge_` does it too.

    Args:
        model: any module.

    Returns:
        the model.
    """
    return _retyped(model, FusedBatchNorm2d, nn.BatchNorm2d)


def _retyped(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
            module.__dict__.pop("waits_for", None)
    return model
