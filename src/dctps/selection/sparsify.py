"""From any network to one whose layers are alpha * D + S."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dctps.arguments import NO_WEIGHTS, whole
from dctps.initial import Init, reset_
from dctps.networks.conversion import DPS_CLASS, convert
from dctps.networks.replaced import trained, watch_optimizers
from dctps.networks.surgery import named_modules, refuse_wrapped, replace_
from dctps.networks.survey import Expanded, is_frozen, survey
from dctps.nn import DpSLayer
from dctps.nn.layer import Alpha
from dctps.offsets import Offset, OffsetChoice
from dctps.selection.allocation import Allocation
from dctps.selection.criteria import Criterion, Loss
from dctps.selection.trained import warn_of_trained
from dctps.selection.weights import Options, Scorer, choose_weights

Filter = Callable[[nn.Module, str], bool]


def sparsify_(
    model: nn.Module,
    density: float = 1e-3,
    *,
    offset: OffsetChoice = "dct",
    allocation: str | Mapping[str, float] | Allocation | Criterion | None = None,
    criterion: str | Mapping[str, Tensor] | Criterion = "random",
    alpha: Alpha = "one",
    alpha_trainable: bool = True,
    init: Init = "dense",
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
        density: fraction of the prunable weights that train, in [0, 1]; above 0 without an offset.
        offset: D: a name, a class of offsets, or an `Offset`, whose class, options and seed each
            layer then has.
        allocation: how many train in each layer: `"uniform"`, `"epl"`, `"epf"`, `"erk"`, `"narrow"`, shares
            by layer name, a function, or a criterion (`"synflow"`, `partial(criteria.synflow, rounds=10)`):
            as many as that one keeps there.
            None: `"epl"` for random, else `"global"`, the whole network ranked as one.
        criterion: which train: `"random"`; a score's name (`"magnitude"`, `"snip"`, `"grasp"`, `"force"`,
            `"iter-snip"`, `"synflow"`; under an offset `"offset-snip"`, `"offset-gradient"`) or function;
            `"nonzero"` for the nonzeros of already pruned weights; or masks (or positions) by layer
            name. The last two fix the budget, and density and allocation play no part.
        alpha: `"one"`, `"match"` (||W|| / ||D||, 0 for a layer initialised to zero) or a number. On the
            meta device the norm is the one that the law of the weight leads to expect (`dctps.initial`).
        alpha_trainable: whether alpha is trained.
        init: first values under the offset zero, where S does not start at 0: `"dense"` for those of the
            dense layer at the positions that train, or `"fan-in"`, drawn anew once these are chosen, for
            each output by its own number of weights f: N(0, 2 / f), or what the layer's own law makes of it
            (`dctps.initial.law_by`).
        loss: `loss(model, batch)` for criteria that need one, by default the cross-entropy.
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
            [0, 1], scores that cannot rank, or on the meta device what needs weights or cannot be made; with
            the layer's name. The model is then unchanged.

    Reference: Price and Tanner, "Dense for the Price of Sparse", ICML 2021, sections 3 and 4.
    """
    refuse_wrapped(model)
    before = trained(model)
    wanted = _wanted(filter_fn, convert_frozen)
    with Expanded(model, wanted) as expanded:
        layers = _convertible(expanded, wanted)
        expanded.close(set(layers.values()))
        model = expanded.model
        unmade = _unmade(model, layers)
        options: dict[str, Any] = {"alpha": alpha, "alpha_trainable": alpha_trainable, "init": init}
        options |= {"offset": offset, "device": device, "seed": whole("seed", seed)}
        empty = {name: {"nnz": 0} for name in layers}
        scorer = Scorer(model, layers, loss, batches, lambda: _converted(layers, empty, **options))
        choice = choose_weights(density, allocation, criterion, scorer, seed)
        replacements = _converted(layers, choice, **options)
        if density == 0 and all(made.alpha is None and not made.nnz for made in replacements.values()):
            raise ValueError(NO_WEIGHTS)
        keeps = init == "dense" and (criterion != "random" or density == 1)
        if not keeps or any(made.alpha is not None for made in replacements.values()):
            warn_of_trained(model, layers)
        _make(unmade, device or "cpu")
        model = replace_(model, replacements)
    watch_optimizers(before, model, "sparsify_")
    return model


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


def _converted(
    layers: Mapping[str, nn.Module],
    choice: Mapping[str, Options],
    *,
    offset: OffsetChoice,
    device: torch.device | str | None,
    **options: Any,
) -> dict[nn.Module, DpSLayer]:
    """The DpS layer of each dense one."""
    found: dict[nn.Module, DpSLayer] = {}
    kind = offset
    if isinstance(offset, Offset):  # what it is for its own shape, it is for each layer's

        def kind(shape: tuple[int, ...], *, groups: int, seed: int, layer: str) -> Offset:
            return offset.like(shape, groups=groups, layer=layer)

    for name, layer in layers.items():
        is_meta = layer.get_parameter("weight").is_meta
        try:
            found[layer] = convert(
                layer, **choice[name], **options, offset=kind, name=name, device=device if is_meta else None
            )
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    return found


def _wanted(filter_fn: Filter | None, convert_frozen: bool) -> Filter:
    """Whether a module that can be converted is to be."""

    def wanted(module: nn.Module, name: str) -> bool:
        return (convert_frozen or not is_frozen(module)) and (filter_fn is None or filter_fn(module, name))

    return wanted


def _convertible(expanded: Expanded, wanted: Filter) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d]:
    found = survey(expanded.model)
    # Layers that a module of a registered class was written in: `wanted` was asked for that module.
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
            f"{type(expanded.model).__name__} has nothing to convert: {out} layers were left out by "
            f"filter_fn, {converted} are converted already (merge_ turns those back), {frozen} are frozen "
            f"(convert_frozen=True converts those too), {len(left)} cannot be"
            + "".join(f"; {reason}" for reason in left[:3])
        )
    return layers  # type: ignore[return-value]


def _make(unmade: list[nn.Module], device: torch.device | str) -> None:
    """Give modules on the meta device their tensors; those that they share stay shared."""
    made: dict[int, nn.Parameter | None] = {}  # by the tensor on the meta device
    for module in unmade:
        before = dict(module._parameters)
        module.to_empty(device=device, recurse=False)
        for key, tensor in before.items():
            module._parameters[key] = made.setdefault(id(tensor), module._parameters[key])
    for module in unmade:
        reset_(module)


def _unmade(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Modules that hold meta tensors and are not converted; each has a `reset_parameters` that fills them."""
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
