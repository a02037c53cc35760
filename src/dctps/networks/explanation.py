"""Which path each layer's calls take, and what the rule estimated: seen in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dctps.networks.surgery import named_modules
from dctps.nn.layer import DpSLayer
from dctps.product.geometry import ConvGeometry
from dctps.product.machine import machine_of
from dctps.product.path import Call
from dctps.product.rule import Costs, Seen, decide, environment_backend, estimates, observers
from dctps.tables import aligned


@dataclass(frozen=True)
class CallRow:
    """One call of one layer.

    Attributes:
        name: of the layer, qualified; empty for a root, and for a product outside of the layers.
        kind: the layer's class.
        shape: of the weight.
        input: shape of what the product takes, rows as a matrix.
        layout: `"rows"`, `"NCHW"` or `"channels last"`.
        dtype: in which the product is made.
        nnz: of S.
        path: the name of the path that the call takes: `"rows"`, `"strips"`, `"kept"` and so on.
        chosen_by: `"rule"`, `"DCTPS_BACKEND"` or `"layer"` (its `backend`).
        costs: nanoseconds that the rule estimates, by path; none for a path that it does not consider, or
            for which the machine's profile has no constants. Only ratios within a call matter.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    input: tuple[int, ...]
    layout: str
    dtype: str
    nnz: int
    path: str
    chosen_by: str
    costs: Costs


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        rows: one for each call, in their order.
        machines: the profiles that the rule's estimates come from, in words.
    """

    rows: list[CallRow]
    machines: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.rows:
            return "no layer has an offset or a support: dense layers take torch's own path"
        paths = list(dict.fromkeys(path for row in self.rows for path in row.costs))
        header = ("layer", "kind", "shape", "input", "layout", "dtype", "nnz", "path", "chosen by")
        table = [(*header, *(f"{path} (us)" for path in paths))]
        for row in self.rows:
            table.append(
                (
                    row.name or "(root)",
                    row.kind,
                    "x".join(map(str, row.shape)),
                    "x".join(map(str, row.input)),
                    row.layout,
                    row.dtype,
                    f"{row.nnz:,}",
                    row.path,
                    row.chosen_by,
                    *(f"{row.costs[path] / 1e3:,.0f}" if path in row.costs else "" for path in paths),
                )
            )
        lines = aligned(table, right={6, *range(9, 9 + len(paths))})
        return "\n".join([*lines, *(f"estimates: {machine}" for machine in self.machines)])


def explain(model: nn.Module, *inputs: Any, batch_size: int | None = None, **keywords: Any) -> Explanation:
    """Say which path each call of each DpS layer takes, from one forward pass in evaluation mode.

    Under `torch.autocast` it says what holds there, and under `torch.no_grad` what holds in inference. A
    compiled network is run as a plain one; its paths are the same.

    Args:
        model: any module.
        inputs: of its `forward`, with the batch as their first axis; so `keywords`.
        batch_size: to explain the calls for (None: that of the inputs). The pass itself stays as small as the
            inputs are.
        keywords: see `inputs`.

    Raises:
        ValueError: `batch_size` without a tensor among the inputs to compare with; as from the model's call,
            a path that a layer cannot take.
    """
    scale = 1.0 if batch_size is None else batch_size / _batch_of([*inputs, *keywords.values()])
    rows: list[CallRow] = []
    machines: dict[str, None] = {}

    def see(name: str, layer: nn.Module | None, seen: Seen) -> None:
        rows.append(_row(name, layer, seen, scale))
        machines[str(machine_of(seen.call.device, seen.call.variant))] = None

    with observed(model, see):
        model(*inputs, **keywords)
    return Explanation(rows, list(machines))


@contextmanager
def observed(model: nn.Module, see: Callable[[str, DpSLayer | None, Seen], None]) -> Iterator[None]:
    """Have every product's call reported with the layer in which it is made, and its name.

    Within, the model is in evaluation mode, so that no statistics change; afterwards all is as before.
    """
    inside: list[tuple[str, DpSLayer]] = []

    def observe(seen: Seen) -> None:
        name, layer = inside[-1] if inside else ("", None)
        see(name, layer, seen)

    modes = {module: module.training for module in model.modules()}
    with ExitStack() as undo:
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(torch.random.fork_rng(devices=[]))
        for module, mode in modes.items():
            undo.callback(setattr, module, "training", mode)
        model.eval()
        for name, module in named_modules(model):
            if isinstance(module, DpSLayer):
                entered = module.register_forward_pre_hook(
                    lambda layer, _, name=name: inside.append((name, layer)), prepend=True
                )
                left = module.register_forward_hook(lambda *_: _drop(inside), always_call=True)
                undo.callback(entered.remove)
                undo.callback(left.remove)
        observers.append(observe)
        undo.callback(observers.remove, observe)
        yield


def _row(name: str, layer: nn.Module | None, seen: Seen, scale: float) -> CallRow:
    x, call, path = seen.x, seen.call, seen.path
    requested = environment_backend() if seen.backend == "auto" else seen.backend
    if scale != 1:
        # The layout at another batch size: as strided, and without memory.
        scaled = torch.empty_strided((round(x.shape[0] * scale), *x.shape[1:]), x.stride(), device="meta")
        call = Call.of(
            scaled, call.nnz, call.offset, call.geometry, native=call.native, training=call.training
        )
        call = replace(call, device=seen.call.device, ordinary=seen.call.ordinary, tf32=seen.call.tf32)
        path = decide(call, requested)
    layout = "rows"
    if isinstance(seen.geometry, ConvGeometry):
        layout = "channels last" if call.channels_last else "NCHW"
    chosen_by = "layer" if seen.backend != "auto" else "rule" if requested == "auto" else "DCTPS_BACKEND"
    return CallRow(
        name,
        type(layer).__name__ if layer is not None else "",
        call.offset.shape,
        call.shape,
        layout,
        str(x.dtype).removeprefix("torch."),
        call.nnz,
        path.name,
        chosen_by,
        {name: cost for name, cost in estimates(call, "auto").items() if math.isfinite(cost)},
    )


def _batch_of(arguments: list[Any]) -> int:
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.dim() and len(argument):
            return len(argument)
    raise ValueError("batch_size needs a tensor among the inputs, with the batch as its first axis")


def _drop(inside: list[tuple[str, DpSLayer]]) -> None:
    inside.pop()
