"""From any network to one whose layers are alpha * D + S."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn import DpSConv2d, DpSLayer, DpSLinear
from dctps.nn.layer import Alpha
from dctps.nn.surgery import named_modules, replace_
from dctps.selection.allocation import Allocation, allocate
from dctps.selection.choose import choose
from dctps.selection.criteria import Criterion, Loss
from dctps.selection.criteria.offset import choose_on_offset
from dctps.selection.criteria.ranking import Counts
from dctps.selection.criteria.registry import CRITERIA, ON_OFFSET, name_of
from dctps.sparse import budget

_DPS_CLASS: dict[type[nn.Module], type[DpSLayer]] = {nn.Linear: DpSLinear, nn.Conv2d: DpSConv2d}


def sparsify_(
    model: nn.Module,
    density: float = 1e-3,
    *,
    offset: str = "dct",
    allocation: str | Mapping[str, float] | Allocation | None = None,
    criterion: str | Mapping[str, Tensor] | Criterion = "random",
    alpha: Alpha = "one",
    alpha_trainable: bool = True,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Replace every `nn.Linear` and `nn.Conv2d` by its DpS layer, in place: W = alpha * D + S.

    K = round(density * N) of the N prunable weights train. With `criterion="random"` the dense network
    need never exist: build it under `torch.device("meta")`, and what is not converted is made by its
    own `reset_parameters()`. Layers already converted stay as they are and count for nothing here;
    subclasses of the two, parametrised layers and other classes are left alone.

    Args:
        model: any module; a layer used in several places is converted once.
        density: fraction of the prunable weights that train, in (0, 1].
        offset: name of D.
        allocation: how many train in each layer: `"uniform"`, `"epl"`, `"epf"`, `"erk"`, shares by
            layer name, a function, or a criterion's name (`"synflow"`): as many as that one keeps there.
            None: `"epl"` for random, else `"global"`, the whole network ranked as one.
        criterion: which train: `"random"`; a score's name (`"magnitude"`, `"snip"`, `"grasp"`, `"force"`,
            `"iter-snip"`, `"synflow"`; under an offset `"offset-snip"`, `"offset-gradient"`) or function;
            `"nonzero"` for the nonzeros of already pruned weights; or masks (or positions) by layer
            name. The last two fix the budget, and density and allocation play no part.
        alpha: `"one"`, `"match"` (||W|| / ||D||, 0 for a layer initialised to zero) or a number.
        alpha_trainable: whether alpha is trained.
        loss: `loss(model, batch)` for criteria that need one.
        batches: data for criteria that need some: `(inputs, labels)` on the model's device, or whatever
            `loss` takes.
        seed: of all draws, each layer's own by its qualified name.
        filter_fn: `filter_fn(module, name)` is False for a layer to leave dense.
        device: where a meta-built model is made; by default the CPU.

    Returns:
        the model; a root that is itself a linear or convolutional layer comes back replaced.

    Raises:
        ValueError: nothing to convert, tied weights, a density outside (0, 1], scores that cannot rank,
            or on the meta device what needs weights or cannot be made; with the layer's name. The model is
            then unchanged.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, sections 3 and 4.
    """
    layers = _convertible(model, filter_fn)
    _refuse_tied(model, layers)
    unmade = _unmade(model, layers)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}

    def converted(choice: Mapping[str, Mapping[str, Any]]) -> dict[nn.Module, nn.Module]:
        replacements: dict[nn.Module, nn.Module] = {}
        for name, layer in layers.items():
            try:
                replacements[layer] = _DPS_CLASS[type(layer)].from_dense(
                    layer,
                    **choice[name],
                    offset=offset,
                    alpha=alpha,
                    alpha_trainable=alpha_trainable,
                    seed=seed,
                    name=name,
                    device=device if layer.weight.is_meta else None,
                )
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        return replacements

    choice: Mapping[str, Mapping[str, Any]]
    if isinstance(criterion, Mapping):
        choice = {name: {"support": support} for name, support in _given(criterion, layers).items()}
    elif criterion == "nonzero":
        choice = {name: {} for name in layers}
    else:
        batches = list(batches) if isinstance(batches, Iterator) else batches
        total = budget(density, sum(map(math.prod, shapes.values())))
        counts: Counts = total
        if isinstance(allocation, str) and allocation in CRITERIA:
            _refuse_meta(layers, f"allocation {allocation!r}")
            kept = choose(allocation, model, layers, loss, batches, total)
            counts = {name: int(mask.sum()) for name, mask in kept.items()}
        elif criterion == "random" and allocation == "global":
            raise ValueError(
                "allocation 'global' is a ranking of the whole network, and criterion 'random' ranks "
                "nothing: choose 'uniform' or another allocation"
            )
        elif criterion == "random" or allocation not in (None, "global"):
            counts = allocate(allocation or "epl", shapes, total, seed=seed)
        if criterion == "random":
            choice = {name: {"nnz": counts[name]} for name in layers}  # type: ignore[index]
        else:
            _refuse_meta(layers, f"criterion {name_of(criterion)!r}")
            if criterion in ON_OFFSET:
                empty = converted({name: {"nnz": 0} for name in layers})
                supports = _chosen_on(empty, criterion, model, layers, loss, batches, counts)
            else:
                supports = choose(criterion, model, layers, loss, batches, counts)
            choice = {name: {"support": support} for name, support in supports.items()}

    replacements = converted(choice)
    for module in unmade:
        module.to_empty(device=device or "cpu", recurse=False)
        module.reset_parameters()  # type: ignore[operator]
    return replace_(model, replacements)


def _chosen_on(
    empty: Mapping[nn.Module, nn.Module],
    criterion: str,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    loss: Loss | None,
    batches: Iterable[Any] | None,
    counts: Counts,
) -> dict[str, Tensor]:
    """What a criterion chooses on the converted network, S still 0; then the model is dense again."""
    scored: dict[str, DpSLayer] = {name: empty[layer] for name, layer in layers.items()}  # type: ignore[misc]
    if any(layer.alpha is None for layer in scored.values()):
        raise ValueError(
            f"criterion {criterion!r} scores W = alpha * D + S, which is 0 under the offset 'zero': choose "
            f"another offset, or a criterion of the dense weights such as 'snip'"
        )
    trial = replace_(model, empty)
    try:
        return choose_on_offset(criterion, trial, scored, loss, batches, counts)
    finally:
        replace_(trial, {made: dense for dense, made in empty.items()})


def _convertible(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None
) -> dict[str, nn.Linear | nn.Conv2d]:
    found, converted = {}, 0
    for name, module in named_modules(model):
        converted += isinstance(module, DpSLayer)
        # A weight that is no Parameter is computed by a hook, which would not follow the layer.
        if type(module) in _DPS_CLASS and "weight" in module._parameters:
            found[name] = module
    kept = {name: m for name, m in found.items() if filter_fn is None or filter_fn(m, name)}
    if not kept:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear or nn.Conv2d to convert: {len(found)} were left out by "
            f"filter_fn, {converted} are converted already (merge_ turns those back)"
        )
    return kept  # type: ignore[return-value]


def _refuse_tied(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in named_modules(model):
        for parameter in module._parameters.values():
            owners[id(parameter)].append(name)
    for name, layer in layers.items():
        others = [other for other in owners[id(layer.weight)] if other != name]
        if others:
            raise ValueError(
                f"layer {name!r} shares its weight with {', '.join(map(repr, others))}: converting it would "
                f"untie them. Leave it dense with filter_fn=lambda module, name: name != {name!r}"
            )


def _unmade(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Modules beside the layers that hold meta tensors, each with a way to make them."""
    unmade = []
    for name, module in named_modules(model):
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if name not in layers and any(t.is_meta for t in own):
            if not callable(getattr(module, "reset_parameters", None)):
                raise ValueError(
                    f"module {name!r} ({type(module).__name__}) is on the meta device and has no "
                    f"reset_parameters() to make its tensors: give it one, or build the model for real"
                )
            unmade.append(module)
    return unmade


def _refuse_meta(layers: Mapping[str, nn.Module], what: str) -> None:
    for name, layer in layers.items():
        if layer.weight.is_meta:
            raise ValueError(
                f"{what} needs weights, and layer {name!r} is on the meta device: build the model for real, "
                f"or use criterion='random'"
            )


def _given(supports: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> Mapping[str, Tensor]:
    missing, unknown = [n for n in layers if n not in supports], [n for n in supports if n not in layers]
    if missing or unknown:
        raise ValueError(
            f"the supports must name each converted layer: missing {missing}, not layers {unknown}; "
            f"filter_fn leaves a layer dense"
        )
    return supports
