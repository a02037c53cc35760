"""What a file says of its layers: one record each, as compact JSON and back, with every field checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dctps.checkpoint import gaps
from dctps.checkpoint.container import MAX_NUMBERS, shorten
from dctps.nn import DpSLayer
from dctps.offsets import Offset, build_offset, list_offsets
from dctps.sparse import random_support

FORMAT = 1
Norms = Literal["full", "half", "folded", "folded-half"]
NORMS: tuple[Norms, ...] = ("full", "half", "folded", "folded-half")

_MAX_SEED_BITS = 128
_NOT_COMMON = ("name", "shape", "nnz")  # these differ from layer to layer


@dataclass(frozen=True)
class LayerRecord:
    """One DpS layer: its name without wrappers' prefixes, the shape of W, the registered name of D, ..."""

    name: str
    shape: tuple[int, ...]
    nnz: int
    groups: int
    offset: str
    seed: int
    offset_seed: int | None  # of D, where it is another than `seed`
    draws: str | None  # the name that keys the layer's draws, where it is another than `name`
    alpha_trainable: bool
    rice: int | None  # parameter of the support's code; None for a support that the seed gives

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def build_offset(self) -> Offset:
        """D; ValueError for a name that is not registered here, or a shape that does not fit it."""
        seed = self.seed if self.offset_seed is None else self.offset_seed
        return build_offset(self.offset, self.shape, groups=self.groups, seed=seed, layer=self._draws)

    def draw_support(self) -> Tensor:
        """The support that the seed gives, int64 (nnz,)."""
        return random_support(self.size, self.nnz, seed=self.seed, layer=self._draws)

    @property
    def _draws(self) -> str:
        return self.name if self.draws is None else self.draws


@dataclass(frozen=True)
class Manifest:
    """All metadata of a file except its checksum: its layers, in the order of their values, and more.

    `user` is whatever the caller added; `projections` are the specs of hyperplanes' projections, by module.
    """

    layers: list[LayerRecord]
    norms: Norms = "full"
    user: dict[str, Any] = field(default_factory=dict)
    projections: dict[str, Any] = field(default_factory=dict)

    @property
    def inference_only(self) -> bool:
        """Whether the file lacks what training would need."""
        return self.norms != "full"

    def to_fields(self) -> dict[str, Any]:
        """Ready for JSON; what most layers agree on is said once."""
        records = [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers]
        common = {
            key: Counter(record[key] for record in records).most_common(1)[0][0]
            for key in _KEYS
            if records and key not in _NOT_COMMON
        }
        short = [
            {key: value for key, value in record.items() if key not in common or value != common[key]}
            for record in records
        ]
        return {
            "format": FORMAT,
            "norms": self.norms,
            "inference_only": self.inference_only,
            "common": common,
            "layers": short,
            "user": self.user,
            **({"projections": self.projections} if self.projections else {}),
        }


_KEYS = tuple(f.name for f in fields(LayerRecord))


def parse(values: Mapping[str, Any]) -> Manifest:
    """The inverse of `to_fields`; ValueError, with one line, for values that it cannot have made."""
    if values.get("format") != FORMAT or type(values["format"]) is not int:
        raise ValueError(f"it is of format {shorten(values.get('format'))}, and this dctps reads {FORMAT}")
    if set(values) - {"projections"} != {"format", "norms", "inference_only", "common", "layers", "user"}:
        raise ValueError("its metadata lack a field or have one too many")
    norms, common, layers, user = (values[key] for key in ("norms", "common", "layers", "user"))
    projections = values.get("projections", {})
    if norms not in NORMS or values["inference_only"] is not (norms != "full"):
        raise ValueError(f"its norms are {shorten(norms)}")
    if not (isinstance(layers, list) and all(isinstance(v, dict) for v in (common, user, projections))):
        raise ValueError("its metadata are of the wrong types")
    manifest = Manifest([_record(common, layer) for layer in layers], norms, user, projections)
    if len({layer.name for layer in manifest.layers}) < len(layers):
        raise ValueError("a layer is named twice")
    return manifest


def _record(common: dict[str, Any], values: object) -> LayerRecord:
    if not isinstance(values, dict) or set(merged := {**common, **values}) != set(_KEYS):
        raise ValueError("a layer's record lacks a field or has one too many")
    name, shape = merged["name"], merged["shape"]

    def need(field: str, sound: bool) -> None:
        if not sound:
            raise ValueError(f"layer {shorten(name)} has the {field} {shorten(merged[field])}")

    need("name", _is_text(name))
    need("offset", _is_text(merged["offset"]))
    sizes = shape if isinstance(shape, list) and len(shape) in (2, 4) else [0]
    need("shape", all(_is_count(size, 1) for size in sizes) and math.prod(sizes) <= MAX_NUMBERS)
    size = math.prod(sizes)
    need("nnz", _is_count(merged["nnz"], 0, size))
    need("groups", _is_count(merged["groups"], 1, sizes[0]))
    need("seed", _is_seed(merged["seed"]))
    need("offset_seed", merged["offset_seed"] is None or _is_seed(merged["offset_seed"]))
    need("draws", merged["draws"] is None or _is_text(merged["draws"]))
    need("alpha_trainable", type(merged["alpha_trainable"]) is bool)
    need("rice", merged["rice"] is None or _is_count(merged["rice"], 0, size.bit_length() - 1))
    return LayerRecord(**{**merged, "shape": tuple(shape)})


def describe(name: str, layer: DpSLayer) -> tuple[LayerRecord, gaps.Bytes | None]:
    """A layer's record, and the bits of its support unless the seed gives it (None).

    A layer on the meta device is taken as drawn from its seed. An offset that a file cannot name is a
    ValueError.
    """
    offset, seed = layer.offset, layer.seed
    offset_seed = None if offset.seed == seed else offset.seed
    draws = None if offset.layer == name else offset.layer
    trains = layer.alpha is None or layer.alpha.requires_grad
    where = name, offset.shape, layer.nnz, offset.groups, offset.name
    record = LayerRecord(*where, seed, offset_seed, draws, trains, rice=None)
    if not all(_is_seed(number) for number in (seed, offset.seed)):
        raise ValueError(f"layer {name!r} has a seed above {_MAX_SEED_BITS} bits: choose a smaller one")
    try:
        if offset.name not in list_offsets():
            raise ValueError(f"name one with register_offset, {offset!r} has none")
        rebuilt = record.build_offset()
    except ValueError as error:
        raise ValueError(f"layer {name!r} has an offset without a registered name: {error}") from None
    if rebuilt != offset:
        raise ValueError(f"layer {name!r}: the offset {offset!r} cannot be rebuilt from name, shape and seed")
    if layer.support.is_meta:
        return record, None
    support = layer.support.cpu()
    if torch.equal(support, record.draw_support()):
        return record, None
    k, bits = gaps.encode(support.numpy(), record.size)
    return replace(record, rice=k), bits


def read_supports(manifest: Manifest, packed: Tensor | None) -> dict[str, Tensor]:
    """Each layer's support, int64 (nnz,); ValueError if `packed`, uint8 or None, is not just their code."""
    coded = [layer for layer in manifest.layers if layer.rice is not None]
    if (packed is None) == bool(coded):
        raise ValueError("its packed supports are not those of its layers")
    if packed is not None and (packed.dtype != torch.uint8 or packed.dim() != 1):
        raise ValueError("its packed supports are not bytes")
    content = np.zeros(0, np.uint8) if packed is None else packed.numpy()
    supports, at = {}, 0
    for layer in manifest.layers:
        if layer.rice is None:
            supports[layer.name] = layer.draw_support()
            continue
        try:
            positions, at = gaps.decode(content, at, layer.size, layer.nnz, layer.rice)
        except ValueError as error:
            raise ValueError(f"the support of layer {shorten(layer.name)}: {error}") from None
        supports[layer.name] = torch.from_numpy(positions)
    if -(-at // 8) != len(content) or (at % 8 and content[-1] & (0xFF >> at % 8)):
        raise ValueError("its packed supports do not end with the last layer's")
    return supports


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_count(value: object, low: int, high: int = MAX_NUMBERS) -> bool:
    return type(value) is int and low <= value <= high


def _is_seed(value: object) -> bool:
    return type(value) is int and value.bit_length() <= _MAX_SEED_BITS
