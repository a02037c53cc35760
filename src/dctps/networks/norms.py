"""Fewer numbers beside S: normalisation layers without scale and shift or with shared ones, no biases.

At extreme densities these are most of what trains: of a ResNet50 at density 0.01% the norms have 53,120
numbers, against 2,347 values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dctps.networks.surgery import named_modules
from dctps.nn.layer import DpSLayer

NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_AFFINE = ("weight", "bias")
_BIASED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def plain_norms_(model: nn.Module) -> nn.Module:
    """Take scale and shift away from every normalisation layer, in place: y = (x - mean) / std.

    Their values are lost, which at initialisation, where they are 1 and 0, changes nothing. (To keep trained
    ones, and not train them further, `requires_grad_(False)` on them is enough.) Running statistics stay.
    A file of the network holds neither: make the one that it is loaded into plain first.

    Args:
        model: any module; batch, instance, group, layer and RMS norms in it are changed.

    Returns:
        the model.

    Raises:
        ValueError: there is no scale or shift to take away.
    """
    for norm in _affine_norms(model, "leave norm as it is").values():
        for key in _AFFINE:
            if key in norm._parameters:
                norm._parameters[key] = None
        for key in ("affine", "elementwise_affine"):
            if hasattr(norm, key):
                setattr(norm, key, False)
    return model


def freeze_except_norms_(model: nn.Module) -> nn.Module:
    """Let the scales and shifts of the normalisation layers train, and nothing else, in place.

    Every other parameter stays as it is, with `requires_grad=False`: all weights, those of the classifier and
    all biases among them. Running statistics go on moving.

    Args:
        model: any module; batch, instance, group, layer and RMS norms in it train.

    Returns:
        the model.

    Raises:
        ValueError: there is no scale or shift to train.

    Reference: Frankle, Schwab and Morcos, "Training BatchNorm and Only BatchNorm: On the Expressive Power of
    Random Features in CNNs", ICLR 2021.
    """
    norms = _affine_norms(model, "choose a network that has some, such as resnet20, and norm=affine")
    model.requires_grad_(False)
    for norm in norms.values():
        norm.requires_grad_()
    return model


def share_norms_(model: nn.Module, stage: Callable[[nn.Module, str], Hashable] | None = None) -> nn.Module:
    """Let normalisation layers of one stage train one scale and shift together, in place.

    Those share that are of one stage, one class and one width, and whose scales and shifts are equal now: a
    branch that begins at scale 0 does not share with one that begins at 1. Running statistics stay each
    layer's own. What is shared is one `nn.Parameter` in several places: optimizers, `report` and files have
    it once. Share in the network that a file is loaded into, too.

    Args:
        model: any module; batch, instance, group, layer and RMS norms in it are changed. One on the meta
            device shares by class and width alone; `sparsify_` makes each layer's anew, so share after it.
        stage: `stage(module, name)` tells stages apart. None: by the child of the network that the layer is
            part of (a ResNet's `layer1`, a VGG's `features`); those that are themselves children of the
            network are one stage.

    Returns:
        the model.

    Raises:
        ValueError: no two layers can share.
    """
    norms = _affine_norms(model, "leave norm as it is")
    depth = _depth(model)
    groups: dict[Hashable, list[nn.Module]] = defaultdict(list)
    for name, norm in norms.items():
        place = ".".join(name.split(".")[depth:-1][:1]) if stage is None else stage(norm, name)
        groups[place, id(type(norm)), *map(_identity, _own(norm).values())].append(norm)
    if all(len(group) == 1 for group in groups.values()):
        raise ValueError(
            f"no two of the {len(norms)} normalisation layers of {type(model).__name__} have one stage, one "
            f"width and equal scales and shifts: share before training, or give a stage(module, name)"
        )
    for first, *others in groups.values():
        for other in others:
            other._parameters.update(_own(first))
    return model


def remove_biases_(model: nn.Module) -> nn.Module:
    """Take the bias away from every linear and convolutional layer, converted or not, in place.

    Args:
        model: any module; subclasses of torch's layers, as within `nn.MultiheadAttention`, keep theirs.

    Returns:
        the model.

    Raises:
        ValueError: there is no bias to take away.
    """
    biased = [
        module
        for _, module in named_modules(model)
        if (isinstance(module, DpSLayer) or type(module) in _BIASED)
        and module._parameters.get("bias") is not None
    ]
    if not biased:
        raise ValueError(f"{type(model).__name__} has no layer with a bias: leave bias as it is")
    for module in biased:
        module._parameters["bias"] = None
    return model


def _affine_norms(model: nn.Module, remedy: str) -> dict[str, nn.Module]:
    norms: dict[str, nn.Module] = {
        name: module
        for name, module in named_modules(model)
        if isinstance(module, NORM_LAYERS) and _own(module)
    }
    if not norms:
        raise ValueError(f"{type(model).__name__} has no normalisation layer with scale or shift: {remedy}")
    return norms


def _own(norm: nn.Module) -> dict[str, nn.Parameter]:
    return {key: value for key in _AFFINE if (value := norm._parameters.get(key)) is not None}


def _identity(parameter: nn.Parameter) -> Hashable:
    """Equal for parameters that could be one."""
    values = () if parameter.is_meta else tuple(parameter.detach().flatten().tolist())
    return tuple(parameter.shape), parameter.dtype, parameter.device, parameter.requires_grad, values


def _depth(model: nn.Module) -> int:
    """How many levels of modules with a single child stand above the network proper."""
    names = [name.split(".") for name, _ in named_modules(model) if name]
    depth = 0
    while any(len(name) > depth + 1 for name in names) and _children(names, depth) == 1:
        depth += 1
    return depth


def _children(names: list[list[str]], depth: int) -> int:
    return len({name[depth] for name in names if len(name) > depth})
