"""Which path each layer's calls take, and what the rule estimated: seen in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dctps.nn.conv_dispatch import choose_conv_backend, conv_costs
from dctps.nn.dispatch import Backend, Costs, choose_backend, environment_backend, linear_costs
from dctps.nn.layer import DpSLayer
from dctps.nn.maps import Conv2d
from dctps.nn.paths import Call, question, witnesses
from dctps.nn.surgery import named_modules
from dctps.tables import aligned

_PATHS: tuple[Backend, ...] = ("dense", "transform", "native")


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
        path: that the call takes: `"dense"`, `"transform"` or `"native"`.
        chosen_by: `"rule"`, `"DCTPS_BACKEND"` or `"layer"` (its `backend`).
        costs: nanoseconds on one core that the rule estimates, by path; none for a path that it does not
            consider. Only ratios within a call matter.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    input: tuple[int, ...]
    layout: str
    dtype: str
    nnz: int
    path: Backend
    chosen_by: str
    costs: Costs


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: a row for each call, in their order."""

    rows: list[CallRow]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.rows:
            return "no layer has an offset or a support: dense layers take torch's own path"
        header = ("layer", "kind", "shape", "input", "layout", "dtype", "nnz", "path", "chosen by")
        table = [(*header, *(f"{path} (us)" for path in _PATHS))]
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
                    *(f"{row.costs[path] / 1e3:,.0f}" if path in row.costs else "" for path in _PATHS),
                )
            )
        return "\n".join(aligned(table, right={6, 9, 10, 11}))


def explain(model: nn.Module, *inputs: Any, batch_size: int | None = None, **keywords: Any) -> Explanation:
    """Say which path each call of each DpS layer takes, from one forward pass in evaluation mode.

    Under `torch.autocast` it says what holds there. A compiled network is run as a plain one; its paths are
    the same.

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

    def see(name: str, layer: nn.Module | None, call: Call) -> None:
        rows.append(_row(name, layer, call, scale))

    with torch.no_grad(), witnessed(model, see):
        model(*inputs, **keywords)
    return Explanation(rows)


@contextmanager
def witnessed(model: nn.Module, see: Callable[[str, DpSLayer | None, Call], None]) -> Iterator[None]:
    """Have every product's call reported with the layer in which it is made, and its name.

    Within, the model is in evaluation mode, so that no statistics change; afterwards all is as before.
    """
    inside: list[tuple[str, DpSLayer]] = []

    def witness(call: Call) -> None:
        name, layer = inside[-1] if inside else ("", None)
        see(name, layer, call)

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
        witnesses.append(witness)
        undo.callback(witnesses.remove, witness)
        yield


def possible_paths(call: Call) -> list[Backend]:
    """The paths that a call could take, in the order in which equals are chosen."""
    offset, nnz = call.weight.offset, call.weight.values.numel()
    possible: list[Backend] = []
    for path in _PATHS:
        of_conv, told = question(call.x, nnz, offset, call.op, path, call.plain)
        try:
            (choose_conv_backend if of_conv else choose_backend)(path, offset, **told)
        except ValueError:
            continue
        possible.append(path)
    return possible


def _row(name: str, layer: nn.Module | None, call: Call, scale: float) -> CallRow:
    x, offset, nnz = call.x, call.weight.offset, call.weight.values.numel()
    shape = (round(x.shape[0] * scale), *x.shape[1:])
    # The layout at another batch size: as strided, and without memory.
    scaled = torch.empty_strided(shape, x.stride(), device="meta")
    asked = environment_backend() if call.backend == "auto" else call.backend
    of_conv, told = question(scaled, nnz, offset, call.op, asked, call.plain)
    path = (choose_conv_backend if of_conv else choose_backend)(asked, offset, **told)
    costs = conv_costs(offset, **told) if of_conv else linear_costs(offset, **told)
    rows = 1 if of_conv else told["rows"]
    layout = "rows"
    if isinstance(call.op, Conv2d):
        is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = "channels last" if is_last else "NCHW"
    chosen_by = "layer" if call.backend != "auto" else "rule" if asked == "auto" else "DCTPS_BACKEND"
    return CallRow(
        name,
        type(layer).__name__ if layer is not None else "",
        offset.shape,
        shape,
        layout,
        str(x.dtype).removeprefix("torch."),
        nnz,
        path,
        chosen_by,
        {path: cost * rows for path, cost in costs.items() if math.isfinite(cost)},
    )


def _batch_of(arguments: list[Any]) -> int:
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.dim() and len(argument):
            return len(argument)
    raise ValueError("batch_size needs a tensor among the inputs, with the batch as its first axis")


def _drop(inside: list[tuple[str, DpSLayer]]) -> None:
    inside.pop()
