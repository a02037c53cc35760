"""Counting what a network holds and trains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from dctps.checkpoint import file_size
from dctps.checkpoint.state import NORM_LAYERS
from dctps.nn import DpSLayer
from dctps.nn.surgery import named_modules
from dctps.transforms import table_bytes


@dataclass(frozen=True)
class LayerRow:
    """One DpS layer, or one linear or convolutional layer that stayed dense."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    nnz: int
    density: float
    offset: str
    alpha: float | None


@dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
        weights: prunable weights N of the converted layers, a shared layer once.
        nnz: values that train among them.
        density: nnz / N; 1 where nothing is converted.
        trainable: numbers that train by kind: `values`, `alpha`, `dense` (weights that stayed dense),
            `bias`, `norm`, `other`.
        memory_bytes: parameters and buffers, and the index tables of seeded offsets.
        shape_table_bytes: tables that depend on a shape alone, of this whole process.
        disk_bytes: the file that `save_pretrained` writes; None where the network holds what no file can.
        rows: one for each linear or convolutional layer.
    """

    weights: int
    nnz: int
    density: float
    trainable: dict[str, int]
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
        header = ("layer", "kind", "shape", "weights", "nnz", "density", "offset", "alpha")
        table = [header] + [
            (
                row.name or "(root)",
                row.kind,
                "x".join(map(str, row.shape)),
                f"{row.weights:,}",
                f"{row.nnz:,}",
                f"{row.density:.4%}",
                row.offset,
                "" if row.alpha is None else f"{row.alpha:.4g}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        right = {3, 4, 5, 7}
        lines = [
            "  ".join(
                c.rjust(w) if i in right else c.ljust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.trainable.items() if n)
        lines += [
            "",
            f"converted   {self.nnz:,} of {self.weights:,} weights train (density {self.density:.4%})",
            f"trainable   {sum(self.trainable.values()):,} numbers: {kinds or 'none'}",
            f"memory      {self.memory_bytes:,} bytes of parameters and buffers, "
            f"{self.shape_table_bytes:,} bytes of shape tables in this process",
            "disk        "
            + (
                "save_pretrained cannot hold this network"
                if self.disk_bytes is None
                else f"{self.disk_bytes:,} bytes in the file of save_pretrained"
            ),
        ]
        if self.empty:
            have = "has" if len(self.empty) == 1 else "have"
            lines.append(
                f"empty       no signal passes {len(self.empty)} of the layers, which {have} neither weights "
                f"nor an offset: {', '.join(name or '(root)' for name in self.empty)}"
            )
        return "\n".join(line.rstrip() for line in lines)


def report(model: nn.Module) -> Report:
    """Count a network's weights, trained numbers and bytes.

    Args:
        model: any module, converted or not, also on the meta device (alpha is then unknown).

    Returns:
        a `Report`; `str()` of it is a table, `to_dict()` JSON-ready.
    """
    modules = dict(named_modules(model))
    rows = [row for name, module in modules.items() if (row := _row(name, module))]
    converted = [row for row in rows if row.kind.startswith("DpS")]
    weights, nnz = sum(row.weights for row in converted), sum(row.nnz for row in converted)
    tensors = _unique([*model.parameters(), *model.buffers()])
    held = sum(m.offset.held_bytes() for m in modules.values() if isinstance(m, DpSLayer))
    return Report(
        weights=weights,
        nnz=nnz,
        density=nnz / weights if weights else 1.0,
        trainable=_trainable(modules),
        memory_bytes=sum(map(_bytes, tensors)) + held,
        shape_table_bytes=table_bytes(),
        disk_bytes=_disk_bytes(model),
        rows=rows,
    )


def _row(name: str, module: nn.Module) -> LayerRow | None:
    kind = type(module).__name__
    if isinstance(module, DpSLayer):
        shape, nnz, offset = module.offset.shape, module.nnz, module.offset.name
        alpha = None if module.alpha is None or module.alpha.is_meta else float(module.alpha.detach())
    elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        shape, offset, alpha = tuple(module.weight.shape), "", None
        nnz = math.prod(shape)
    else:
        return None
    weights = math.prod(shape)
    return LayerRow(name, kind, shape, weights, nnz, nnz / weights, offset, alpha)


def _trainable(modules: dict[str, nn.Module]) -> dict[str, int]:
    counts = dict.fromkeys(("values", "alpha", "dense", "bias", "norm", "other"), 0)
    seen: set[int] = set()
    for module in modules.values():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                counts[_kind(module, name)] += parameter.numel()
    return counts


def _kind(module: nn.Module, parameter: str) -> str:
    if isinstance(module, DpSLayer):
        return parameter
    if isinstance(module, NORM_LAYERS):
        return "norm"
    if parameter == "bias":
        return "bias"
    return "dense" if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) else "other"


def _disk_bytes(model: nn.Module) -> int | None:
    try:
        return file_size(model)
    except ValueError:
        return None


def _unique(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
