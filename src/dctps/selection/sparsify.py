"""From any network to one whose layers are alpha * D + S."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn import DpSLayer
from dctps.nn.conversion import DPS_CLASS, convert
from dctps.nn.initial import reset_
from dctps.nn.layer import Alpha
from dctps.nn.surgery import named_modules, refuse_wrapped, replace_
from dctps.nn.survey import Expanded, is_frozen, survey
from dctps.selection.allocation import Allocation, allocate
from dctps.selection.choose import choose
from dctps.selection.criteria import Criterion, Loss
from dctps.selection.criteria.offset import choose_on_offset
from dctps.selection.criteria.ranking import Counts
from dctps.selection.criteria.registry import ON_OFFSET, is_criterion, name_of
from dctps.sparse import budget

Filter = Callable[[nn.Module, str], bool]


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
    filter_fn: Filter | None = None,
    convert_frozen: bool = False,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Replace every linear and convolutional layer by its DpS layer, in place: W = alpha * D + S.

    K = round(density * N) of the N prunable weights train. With `criterion="random"` the dense network
    need never exist: build it under `torch.device("meta")`, and what is not converted is made by its
    own `reset_parameters()` and laws. `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` are converted, and modules of
    registered classes (`register_conversion`), such as `nn.MultiheadAttention`, layer by layer. All others
    are left alone, and `report` says why; so are layers that are converted already, and frozen ones.

    Args:
        model: any module; a layer used in several places is converted once.
        density: fraction of the prunable weights that train, in (0, 1].
        offset: name of D.
        allocation: how many train in each layer: `"uniform"`, `"epl"`, `"epf"`, `"erk"`, shares by
            layer name, a function, or a criterion (`"synflow"`, `partial(criteria.synflow, rounds=10)`): as
            many as that one keeps there.
            None: `"epl"` for random, else `"global"`, the whole network ranked as one.
        criterion: which train: `"random"`; a score's name (`"magnitude"`, `"snip"`, `"grasp"`, `"force"`,
            `"iter-snip"`, `"synflow"`; under an offset `"offset-snip"`, `"offset-gradient"`) or function;
            `"nonzero"` for the nonzeros of already pruned weights; or masks (or positions) by layer
            name. The last two fix the budget, and density and allocation play no part.
        alpha: `"one"`, `"match"` (||W|| / ||D||, 0 for a layer initialised to zero) or a number. On the
            meta device the norm is the one that the law of the weight leads to expect (`dctps.nn.initial`).
        alpha_trainable: whether alpha is trained.
        loss: `loss(model, batch)` for criteria that need one.
        batches: data for criteria that need some: `(inputs, labels)` on the model's device, or whatever
            `loss` takes.
        seed: of all draws, each layer's own by its qualified name.
        filter_fn: `filter_fn(module, name)` is False for a layer to leave dense. A module of a registered
            class is asked for as a whole, then layer by layer: `"attention"`, `"attention.q_proj"`.
        convert_frozen: whether layers are converted whose weight has `requires_grad=False`, as in a
            pretrained part that is to stay. Under an offset they lose their weights.
        device: where a meta-built model is made; by default the CPU.

    Returns:
        the model; a root that is itself converted comes back replaced.

    Raises:
        ValueError: nothing to convert, a model wrapped for `DistributedDataParallel`, a density outside
            (0, 1], scores that cannot rank, or on the meta device what needs weights or cannot be made; with
            the layer's name. The model is then unchanged.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, sections 3 and 4.
    """
    refuse_wrapped(model)
    wanted = _wanted(filter_fn, convert_frozen)
    with Expanded(model, wanted) as expanded:
        layers = _convertible(expanded, wanted)
        expanded.close(set(layers.values()))
        model = expanded.model
        unmade = _unmade(model, layers)
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}

        def converted(choice: Mapping[str, Mapping[str, Any]]) -> dict[nn.Module, nn.Module]:
            replacements: dict[nn.Module, nn.Module] = {}
            for name, layer in layers.items():
                try:
                    replacements[layer] = convert(
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
            if is_criterion(allocation):
                _refuse_meta(layers, f"allocation {name_of(allocation)!r}")
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
        _make(unmade, device or "cpu")
        return replace_(model, replacements)


def count_prunable(model: nn.Module, filter_fn: Filter | None = None) -> int:
    """N, the weights of the layers that `sparsify_` would convert; every method's budget is a share of it.

    Raises:
        ValueError: there is no such layer.
    """
    wanted = _wanted(filter_fn, convert_frozen=False)
    with Expanded(model, wanted) as expanded:
        count = sum(layer.weight.numel() for layer in _convertible(expanded, wanted).values())
        expanded.close(())
    return count


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


def _wanted(filter_fn: Filter | None, convert_frozen: bool) -> Filter:
    """Whether a module that can be converted is to be."""

    def wanted(module: nn.Module, name: str) -> bool:
        return (convert_frozen or not is_frozen(module)) and (filter_fn is None or filter_fn(module, name))

    return wanted


def _convertible(expanded: Expanded, wanted: Filter) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d]:
    found = survey(expanded.model)
    # What stands for a module of a registered class has been asked for under that.
    layers = {
        f.name: f.module
        for f in found
        if type(f.module) in DPS_CLASS
        and not f.reason
        and (f.module in expanded.originals or wanted(f.module, f.name))
    }
    if not layers:
        converted = sum(isinstance(module, DpSLayer) for module in expanded.model.modules())
        left = [f"{f.name or '(root)'!r} ({type(f.module).__name__}): {f.reason}" for f in found if f.reason]
        frozen = sum(not f.reason and is_frozen(f.module) for f in found)
        out = sum(not f.reason for f in found) - frozen
        raise ValueError(
            f"{type(expanded.model).__name__} has nothing to convert: {frozen} layers are frozen "
            f"(convert_frozen=True converts those too), {out} were left out by filter_fn, {converted} are "
            f"converted already (merge_ turns those back), {len(left)} cannot be"
            + "".join(f"; {reason}" for reason in left[:3])
        )
    return layers  # type: ignore[return-value]


def _make(unmade: list[nn.Module], device: torch.device | str) -> None:
    """Give modules on the meta device their tensors; those that they share stay shared."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in unmade:
        for key, tensor in module._parameters.items():
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, key))
    for module in unmade:
        module.to_empty(device=device, recurse=False)
    for (first, name), *others in places.values():
        for module, key in others:
            module._parameters[key] = first._parameters[name]
    for module in unmade:
        reset_(module)


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
