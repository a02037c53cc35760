"""Counting what a network holds and trains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dctps.checkpoint import file_size
from dctps.networks.norms import NORM_LAYERS
from dctps.networks.surgery import named_modules
from dctps.networks.survey import FROZEN, Found, is_frozen, survey
from dctps.nn import DpSLayer
from dctps.subspace import Hyperplane
from dctps.tables import aligned
from dctps.transforms import table_bytes


@dataclass(frozen=True)
class LayerRow:
    """One DpS layer, one hyperplane, or one module with weight matrices that stayed dense.

    Attributes:
        name: qualified, without wrappers' prefixes.
        kind: the class.
        shape: of the weight; empty for several.
        weights: their number.
        nnz: values in the support, frozen or not; of a layer that stayed dense, the weights that train.
        density: nnz / weights.
        offset: name of D; empty where there is no DpS layer.
        alpha: now.
        reason: why it was left alone: `"can be converted"` where only `filter_fn`, or no call of
            `sparsify_`, is behind it. Empty for a DpS layer and for a hyperplane, whose row has P's
            shape, the parameters that it moves as weights, and its dimensions as nnz.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    nnz: int
    density: float
    offset: str
    alpha: float | None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
        weights: prunable weights N of the converted layers, a shared layer once.
        nnz: values in the supports, and dimensions of hyperplanes.
        training: how many of those train; the others are frozen, with `requires_grad=False`.
        density: nnz / N; 1 where nothing is converted.
        left_alone: weights of the rows with a reason, a shared one once.
        trainable: numbers that train by kind: `values`, `alpha`, `dense` (weights that stayed dense),
            `bias`, `norm`, `other`; a shared one once; with a hyperplane also `dimensions`.
        frozen: numbers of parameters that do not train.
        statistics: numbers in the normalisation layers' buffers: running means and variances, counters.
        memory_bytes: parameters and buffers, the index tables of seeded offsets, and what a hyperplane's
            projection holds from its first use on.
        shape_table_bytes: tables that depend on a shape alone, of this whole process.
        disk_bytes: the file that `save_pretrained` writes; None where the network holds what no file can.
        rows: one for each layer or other module with weight matrices.
    """

    weights: int
    nnz: int
    training: int
    density: float
    left_alone: int
    trainable: dict[str, int]
    frozen: int
    statistics: int
    memory_bytes: int
    shape_table_bytes: int
    disk_bytes: int | None
    rows: list[LayerRow] = field(repr=False)

    @property
    def empty(self) -> list[str]:
        """The layers that have neither weights nor an offset, so that no signal passes them."""
        return [row.name for row in self.rows if row.offset == "zero" and not row.nnz]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        header = ("layer", "kind", "shape", "weights", "nnz", "density", "offset", "alpha", "left alone")
        table = [header]
        for row in self.rows:
            numbers = f"{row.weights:,}", f"{row.nnz:,}", f"{row.density:.4%}"
            alpha = "" if row.alpha is None else f"{row.alpha:.4g}"
            shape = "x".join(map(str, row.shape))
            table.append((row.name or "(root)", row.kind, shape, *numbers, row.offset, alpha, row.reason))
        lines = aligned(table, right={3, 4, 5, 7})
        left = [row for row in self.rows if row.reason]
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.trainable.items() if n)
        frozen = f", {self.nnz - self.training:,} are frozen" if self.training < self.nnz else ""
        lines += [
            "",
            f"converted   {self.training:,} of {self.weights:,} weights train{frozen} "
            f"(density {self.density:.4%})",
            *([f"left alone  {self.left_alone:,} weights of {len(left)} modules"] if left else []),
            f"trainable   {sum(self.trainable.values()):,} numbers: {kinds or 'none'}",
            f"not trained {self.frozen:,} frozen parameters, {self.statistics:,} running statistics of norms",
            f"memory      {self.memory_bytes:,} bytes of parameters, buffers and drawn tables, "
            f"{self.shape_table_bytes:,} bytes of shape tables in this process",
            "disk        save_pretrained cannot hold this network"
            if self.disk_bytes is None
            else f"disk        {self.disk_bytes:,} bytes in the file of save_pretrained",
        ]
        if self.empty:
            have = "has" if len(self.empty) == 1 else "have"
            lines.append(
                f"empty       no signal passes {len(self.empty)} of the layers, which {have} neither weights "
                f"nor an offset: {', '.join(name or '(root)' for name in self.empty)}"
            )
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Count a network's weights, trained numbers and bytes.

    Args:
        model: any module, converted or not, also on the meta device (alpha is then unknown).

    Returns:
        a `Report`; `str()` of it is a table, `to_dict()` JSON-ready.
    """
    modules = dict(named_modules(model))
    left = {found.name: found for found in survey(model)}
    rows = [
        _left_row(left[name]) if name in left else _row(name, module)
        for name, module in modules.items()
        if isinstance(module, DpSLayer | Hyperplane) or name in left
    ]
    converted = [row for row in rows if not row.reason]
    weights, nnz = sum(row.weights for row in converted), sum(row.nnz for row in converted)
    trainable = dict.fromkeys(("values", "alpha", "dense", "bias", "norm", "other"), 0)
    for kind, parameters in trained_by_kind(model).items():
        trainable[kind] = sum(parameter.numel() for parameter in parameters)
    tensors = _unique([t for t in [*model.parameters(), *model.buffers()] if not is_lazy(t)])
    norms = [module for module in modules.values() if isinstance(module, NORM_LAYERS)]
    statistics = _unique([buffer for norm in norms for buffer in norm.buffers()])
    return Report(
        weights=weights,
        nnz=nnz,
        training=trainable["values"] + trainable.get("dimensions", 0),
        density=nnz / weights if weights else 1.0,
        left_alone=sum(t.numel() for t in _unique([t for f in left.values() for t in f.matrices])),
        trainable=trainable,
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        statistics=sum(tensor.numel() for tensor in statistics),
        memory_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        + sum(map(_drawn_bytes, modules.values())),
        shape_table_bytes=table_bytes(),
        disk_bytes=_disk_bytes(model),
        rows=rows,
    )


def _row(name: str, module: nn.Module) -> LayerRow:
    kind = type(module).__name__
    if isinstance(module, Hyperplane):
        p = module.projection
        shape, share = (p.size, p.dimensions), p.dimensions / p.size
        return LayerRow(name, kind, shape, p.size, p.dimensions, share, p.name, None)
    assert isinstance(module, DpSLayer)
    offset, alpha = module.offset, module.alpha
    now = None if alpha is None or alpha.is_meta else float(alpha.detach())
    size = math.prod(offset.shape)
    return LayerRow(name, kind, offset.shape, size, module.nnz, module.density, offset.name, now)


def _left_row(found: Found) -> LayerRow:
    weights = sum(tensor.numel() for tensor in found.matrices)
    trained = sum(tensor.numel() for tensor in found.matrices if tensor.requires_grad)
    shape = tuple(found.matrices[0].shape) if len(found.matrices) == 1 else ()
    reason = found.reason or (FROZEN if is_frozen(found.module) else "can be converted")
    kind, density = type(found.module).__name__, trained / weights if weights else 1.0
    return LayerRow(found.name, kind, shape, weights, trained, density, "", None, reason)


def trained_by_kind(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that train, by kind, in the network's order; a shared one once, lazy ones left out.

    Args:
        model: any module, converted or not.

    Returns:
        kind -> parameters, the kinds as in `Report.trainable`; none of a kind that the network lacks.
    """
    found: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for _, module in named_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen and not is_lazy(parameter):
                seen.add(id(parameter))
                found.setdefault(_kind(module, name), []).append(parameter)
    return found


def _kind(module: nn.Module, parameter: str) -> str:
    if isinstance(module, DpSLayer):
        return parameter
    if isinstance(module, Hyperplane):
        return "dimensions"
    if isinstance(module, NORM_LAYERS):
        return "norm"
    if "bias" in parameter:
        return "bias"
    return "dense" if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) else "other"


def _disk_bytes(model: nn.Module) -> int | None:
    try:
        return file_size(model)
    except ValueError:
        return None


def _unique(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _drawn_bytes(module: nn.Module) -> int:
    """Of the tables of an offset, or of what a projection holds."""
    if isinstance(module, Hyperplane):
        return module.projection.held_bytes(module.theta_d.element_size())
    return module.offset.held_bytes() if isinstance(module, DpSLayer) else 0
