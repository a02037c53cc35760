"""From a pretrained network to one that trains W = W_0 + S, W_0 where it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from dctps.adapters.switch import disable, set_adapter_
from dctps.adapters.targets import Patterns, Targets, adapted, own_parameters
from dctps.arguments import whole
from dctps.networks.replaced import trained, watch_optimizers
from dctps.networks.surgery import refuse_wrapped
from dctps.nn.adapter import Adapters, attach, build_delta
from dctps.nn.layer import DpSLayer
from dctps.nn.versions import keep_version
from dctps.selection.allocation import Allocation
from dctps.selection.criteria import Criterion, Loss
from dctps.selection.criteria.registry import Batches, Layers, Scores
from dctps.selection.criteria.scoring import mean_gradients, scored_weights
from dctps.selection.weights import Scorer, choose_weights


def adapt_(
    model: nn.Module,
    density: float | None = None,
    *,
    nnz: int | None = None,
    r: int | None = None,
    target_modules: Patterns = None,
    exclude_modules: Patterns = None,
    modules_to_save: Collection[str] = (),
    name: str = "default",
    criterion: str | Mapping[str, Tensor] | Criterion = "random",
    allocation: str | Mapping[str, float] | Allocation | Criterion | None = None,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Freeze a pretrained network and give its layers a sparse S that trains: y = W_0 x + b + S x.

    W_0 stays in the layer, in place; S starts at zero, so the network first computes what it did before.
    The layers are `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, transformers' `Conv1D`, and `nn.MultiheadAttention`,
    which is first written in four linear layers. A second call with another `name` adds an adapter beside the
    first.

    Args:
        model: any module, changed in place.
        density: fraction of the weights of these layers that train, in [0, 1]; or
        nnz: their exact number in the whole network; or
        r: r (m + n) of them in each layer with m outputs and n inputs, as many as a LoRA of rank r has.
        target_modules: the layers: names or their ends, a regular expression for whole names, or None for all
            that can be adapted.
        exclude_modules: modules to leave as they are, with all that is in them, said in the same ways.
        modules_to_save: names of modules that train as a whole and belong to the adapter, such as a new head.
        name: of the adapter.
        criterion: which weights train: `"random"`; `"gradient"`, the largest `|dL/dW_0|` over `batches`;
            `"magnitude"`, `"snip"` or another score of `sparsify_`; or masks by layer name.
        allocation: as for `sparsify_`; by default the same number in each layer for `"random"`, and one
            ranking of the whole network for a score.
        loss: `loss(model, batch)` for scores, by default the cross-entropy.
        batches: data for scores.
        seed: of the supports; each layer draws by its own name.

    Returns:
        the model. The new adapter is active, and it alone trains, so the optimizer is made after this call.

    Raises:
        ValueError: layers or modules that are not there or cannot be adapted, a name that is taken, a number
            that does not fit, or a merged adapter. The model is then unchanged.

    Reference: Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024, for r and for supports by magnitude
        and gradient.
    """
    refuse_wrapped(model)
    check_name(name)
    refuse_taken(model, name)
    before = trained(model)
    targets = Targets(target_modules, exclude_modules, modules_to_save)
    with targets.expand(model) as expanded:
        layers = targets.layers(expanded.model)
        _refuse_meta(layers)
        saved = targets.saved(expanded.model)
        with disable(expanded.model):  # scores are of the base
            options = _choice(
                expanded.model, layers, density, nnz, r, criterion, allocation, loss, batches, seed
            )
        deltas = {key: _built(layer, key, options[key], seed) for key, layer in layers.items()}
        own_memory(expanded, layers.values())
        expanded.close(set(layers.values()))
        model = expanded.model
    install(model, name, layers, deltas, saved)
    watch_optimizers(before, model, "adapt_")
    return model


def install(
    model: nn.Module,
    name: str,
    layers: Mapping[str, nn.Module],
    deltas: Mapping[str, DpSLayer],
    saved: Mapping[str, tuple[nn.Module, list[str], bool]],
) -> None:
    """Attach what an adapter is made of, freeze the network, and let the adapter alone train."""
    for key, layer in layers.items():
        attach(layer, name, deltas[key])
    for module, keys, trains in saved.values():
        keep_version(module, keys, name, trains)
    for parameter in own_parameters(model):
        parameter.requires_grad_(False)
    set_adapter_(model, name)


def check_name(name: str) -> None:
    """Refuse what cannot name an adapter.

    Raises:
        ValueError: it is empty, has a dot or a slash, or is a name that modules have.
    """
    if not isinstance(name, str) or not name or {".", "/"} & {*name} or hasattr(Adapters(), name):
        raise ValueError(
            f"an adapter's name is a text without dots and slashes that is no attribute of modules, got "
            f"{name!r}: choose another"
        )


def refuse_taken(model: nn.Module, name: str) -> None:
    """Refuse a second adapter of one name, and any while one is merged.

    Raises:
        ValueError: so it is.
    """
    for layer, (_, adapters) in adapted(model).items():
        if adapters.merged is not None:
            raise ValueError(f"the adapter {adapters.merged!r} is merged: call unmerge_adapter_(model) first")
        if name in adapters:
            raise ValueError(
                f"layer {layer!r} has an adapter {name!r} already: give this one another name, or call "
                f"remove_adapter_(model, {name!r}) first"
            )


def own_memory(expanded: Any, layers: Iterable[nn.Module]) -> None:
    """Give each linear layer of an attention that was written in such layers its own piece of memory."""
    inside = {module for expansion in expanded.originals for module in expansion.modules()}
    for layer in inside.intersection(layers):
        for tensor in layer.parameters(recurse=False):
            tensor.data = tensor.data.clone()


def gradient(model: nn.Module, layers: Layers, loss: Loss, batches: Batches) -> Scores:
    """|dL/dW_0|, of the mean of the loss over the batches, in evaluation mode: norms as they are used."""
    weights = scored_weights(model, layers, "eval")
    return {name: g.abs_() for name, g in mean_gradients(model, weights, loss, batches).items()}


def _choice(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    density: float | None,
    nnz: int | None,
    r: int | None,
    criterion: str | Mapping[str, Tensor] | Criterion,
    allocation: str | Mapping[str, float] | Allocation | Criterion | None,
    loss: Loss | None,
    batches: Iterable[Any] | None,
    seed: int,
) -> Mapping[str, Mapping[str, Any]]:
    """Which weights of each layer train, as arguments of `build_delta`."""
    sizes = {key: layer.get_parameter("weight").numel() for key, layer in layers.items()}
    total = sum(sizes.values())
    if isinstance(criterion, Mapping):
        density = 0.0
    elif sum(given is not None for given in (density, nnz, r)) != 1:
        raise ValueError("give one of density, nnz and r: it says how many weights train")
    if r is not None:
        if allocation is not None:
            raise ValueError("r says how many weights of each layer train: leave allocation out")
        counts = {key: _lora_count(layer, whole("r", r, least=1)) for key, layer in layers.items()}
        if full := [key for key, count in counts.items() if count > sizes[key]]:
            raise ValueError(
                f"r={r} asks for {counts[full[0]]} weights of layer {full[0]!r}, which has {sizes[full[0]]}: "
                f"choose a smaller r, or exclude the layer"
            )
        nnz, allocation = sum(counts.values()), lambda *_: counts
    if nnz is not None:
        if not 0 <= (nnz := whole("nnz", nnz)) <= total:
            raise ValueError(f"nnz must be in 0..{total}, the weights of the chosen layers, got {nnz}")
        density = nnz / total
    assert density is not None
    if criterion == "nonzero":
        raise ValueError(
            "criterion 'nonzero' is for pruned networks: choose 'random', 'gradient' or 'magnitude'"
        )
    scorer = Scorer(model, layers, loss, batches, _refuse_converted)
    chosen = gradient if criterion == "gradient" else criterion
    return choose_weights(density, allocation, chosen, scorer, seed)


def _refuse_meta(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if layer.get_parameter("weight").is_meta:
            raise ValueError(f"layer {name!r} is on the meta device: load the pretrained weights, then adapt")


def _refuse_converted() -> NoReturn:
    raise ValueError(
        "this criterion scores a network under an offset, and an adapter has the pretrained weight in its "
        "place: choose 'random', 'gradient' or 'magnitude'"
    )


def _lora_count(layer: nn.Module, r: int) -> int:
    shape = layer.get_parameter("weight").shape
    return r * (shape[0] + math.prod(shape[1:]))


def _built(layer: nn.Module, name: str, options: Mapping[str, Any], seed: int) -> DpSLayer:
    try:
        return build_delta(layer, name, seed=whole("seed", seed), **options)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
