"""Fixing each layer's path: by name, or by measuring the paths that it has."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dctps.networks.explanation import observed
from dctps.networks.surgery import named_modules
from dctps.nn.layer import DpSLayer
from dctps.product.function import product
from dctps.product.precision import no_autocast
from dctps.product.rule import Backend, Seen, check_backend, estimates

_HOPELESS = 3  # times the fastest in the first round: not measured again


@dataclass(frozen=True)
class Measured:
    """What was measured of one layer.

    Attributes:
        backend: the fastest path.
        milliseconds: median of forward and backward over the layer's calls, by path.
    """

    backend: Backend
    milliseconds: dict[Backend, float]


def set_backends_(model: nn.Module, backends: Backend | Mapping[str, Backend]) -> None:
    """Fix the path that DpS layers take, or hand it back to the rule with `"auto"`.

    Args:
        model: changed in place, in its layers' `backend`.
        backends: one for all, or by qualified name of the layer for some.

    Raises:
        ValueError: no such backend, or no such layer; the model is then as before.
    """
    layers = {name: module for name, module in named_modules(model) if isinstance(module, DpSLayer)}
    chosen = dict.fromkeys(layers, backends) if isinstance(backends, str) else dict(backends)
    for name, backend in chosen.items():
        if name not in layers:
            raise ValueError(
                f"there is no DpS layer {name!r}: choose from {', '.join(map(repr, layers)) or 'none'}"
            )
        check_backend(backend, name)
    for name, backend in chosen.items():
        layers[name].backend = backend


def tune_(model: nn.Module, *inputs: Any, rounds: int = 5, **keywords: Any) -> dict[str, Measured]:
    """Measure the paths of each DpS layer, and fix each at its fastest.

    The layers' inputs are those of one forward pass, in shape, layout and dtype (give it under
    `torch.autocast` where training is). Each layer is measured by itself, forward and backward, every path
    in turn in each round, after a call that is not counted; one that takes three times the fastest in the
    first round is not tried again. A measurement differs from one time to the next,
    and so may the results of training, in their last bits: keep what is returned, and give it to
    `set_backends_` where a run is to be repeated.

    Args:
        model: changed in place, in its layers' `backend`. Its parameters, gradients and statistics, and
            torch's random state, stay as they are.
        inputs: of its `forward`: an example batch as in training; so `keywords`.
        rounds: measurements of each path.
        keywords: see `inputs`.

    Returns:
        what was measured and chosen, by qualified name of each layer that the pass calls.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    calls: dict[str, list[Seen]] = {}

    def see(name: str, layer: DpSLayer | None, call: Seen) -> None:
        if layer is not None:
            calls.setdefault(name, []).append(call)

    with torch.enable_grad(), observed(model, see):
        model(*inputs, **keywords)
    known: dict[tuple[Any, ...], dict[Backend, float]] = {}
    found = {}
    for name in list(calls):
        totals: dict[Backend, float] = {}
        for call in calls.pop(name):
            key = _key(call)
            if key not in known:
                known[key] = _measure(call, rounds)
            for path, seconds in known[key].items():
                totals[path] = totals.get(path, 0.0) + seconds * 1e3
        found[name] = Measured(min(totals, key=totals.__getitem__), totals)
    set_backends_(model, {name: measured.backend for name, measured in found.items()})
    return found


def _possible(call: Seen) -> list[Backend]:
    """The groups of paths in which there is one for a call, in the order in which equals are chosen."""
    words: tuple[Backend, ...] = ("dense", "transform", "native")
    return [word for word in words if estimates(call.call, word)]


def _key(call: Seen) -> tuple[Any, ...]:
    """What calls that take equal times have in common."""
    values, alpha, _, offset = call.weight
    needs = tuple(t is not None and t.requires_grad for t in (call.x, values, alpha))
    layout = (call.x.shape, call.x.stride(), call.x.dtype, call.x.device, values.dtype)
    return (type(offset), offset.shape, offset.groups, call.geometry, *layout, values.numel(), needs)


def _measure(call: Seen, rounds: int) -> dict[Backend, float]:
    """Seconds of forward and backward, the median, by path."""
    x, values, alpha = (
        None if t is None else t.detach().requires_grad_(t.requires_grad)
        for t in (call.x, call.weight.values, call.weight.alpha)
    )
    assert x is not None and values is not None
    weight = call.weight._replace(values=values, alpha=alpha)
    wanted = [t for t in (x, values, alpha) if t is not None and t.requires_grad]
    g: Tensor | None = None

    def step(path: Backend) -> None:
        nonlocal g
        y = product(x, weight, call.geometry, path)
        if wanted:
            g = torch.ones_like(y) if g is None else g
            torch.autograd.grad(y, wanted, g)

    paths = _possible(call)
    seconds: dict[Backend, list[float]] = {path: [] for path in paths}
    with torch.enable_grad(), no_autocast(x):
        for _ in range(rounds if len(paths) > 1 else 1):
            for path in paths:
                step(path)
                begun = _now(x.device)
                step(path)
                seconds[path].append(_now(x.device) - begun)
            least = min(those[0] for those in seconds.values())
            paths = [path for path in paths if seconds[path][0] <= _HOPELESS * least]
    return {path: statistics.median(those) for path, those in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
