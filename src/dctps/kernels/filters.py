"""What a convolution reads, and D's convolution as small filters on mixed channels, as fast paths apply it.

    (D x)[o] = sum_t  bank[filter[o, t]] * (mix x)[source[o, t]]

`*` is the convolution of one map with one filter of the kernel's size; `mix` maps the channels of each pixel
to `maps` maps: by nothing, by a product of small matrices, or by a cosine transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dctps.kernels.boundary import address
from dctps.kernels.layouts import Mix
from dctps.kernels.plans import has_plan

_NONE, _PLAIN, _PRODUCT, _COSINE, _ROWS = map(int, Mix)
_NO_MIXING = (0,) * 12


@dataclass(frozen=True, slots=True)
class Window:
    """Where a kernel of `shape[2:]` reads: (rows, columns) each, and how the channels are grouped."""

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def reads_all(self) -> bool:
        """Whether every pixel of an image, whatever its size, is read by some tap."""
        axes = zip(self.shape[2:], self.dilation, self.stride, strict=True)
        return all(len({i * by % step for i in range(taps)}) == step for taps, by, step in axes)

    def outputs(self, x: Tensor) -> tuple[int, int, int, int]:
        """The shape of the convolution of x; ValueError where x has other channels or is too small."""
        if x.shape[1] != self.shape[1] * self.groups or min(self.stride) < 1:
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit {self}")
        rows, columns = self.sizes(x.shape[2:])
        if rows < 1 or columns < 1:
            raise ValueError(f"images of shape {tuple(x.shape)} are smaller than {self}")
        return x.shape[0], self.shape[0], rows, columns

    def sizes(self, image: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the results for images of so many rows and columns."""
        (height, width), (up, side), (down, across) = image, self.padding, self.dilation
        return (
            (height + 2 * up - down * (self.shape[2] - 1) - 1) // self.stride[0] + 1,
            (width + 2 * side - across * (self.shape[3] - 1) - 1) // self.stride[1] + 1,
        )

    def check(self, x: Tensor, g: Tensor) -> None:
        """ValueError where x and a gradient of its convolution do not fit; C compares their pixels."""
        batch, channels, _, _ = x.shape
        same = g.shape[0] == batch and g.shape[1] == self.shape[0] and channels == self.shape[1] * self.groups
        if not same or 0 in self.stride:
            raise ValueError(f"{tuple(x.shape)} and a gradient of {tuple(g.shape)} do not fit {self}")


@dataclass(frozen=True, eq=False, slots=True)
class Filters:
    """D by its terms; all float32 and on the CPU.

    Attributes:
        terms: of each output; 0: there is no D.
        bank: (filters, kh * kw).
        maps: how many.
        source: int32 (m, terms), the map that each term of an output reads; without `filter` its position
            among (map, tap), which says both (each round of a cosine transform has kh * kw filters of its
            own); None: term i, over all outputs, is filter i on map i.
        filter: int32 (m, terms), the filter it takes.
        mix: matrices applied to the channels in order: none, (maps, channels), or (rank, channels) and
            (maps, rank); two only where `source` is None.
        cosine: q, if the mixing is the orthonormal DCT-II of length q of the channels, padded with zeros.
        signs: float32 (maps / q, channels), one transform for each of its rows, of the channels times it.
        rows: q, if nothing of the above matters since the weight is asked for: its row o, read as (kh, kw,
            channel), is the beginning of row o of the orthonormal DCT-II of length q.
    """

    terms: int
    bank: Tensor | None = None
    maps: int = 0
    source: Tensor | None = None
    filter: Tensor | None = None
    mix: tuple[Tensor, ...] = ()
    cosine: int = 0
    signs: Tensor | None = None
    rows: int = 0
    checked: dict[tuple[int, int, int], tuple[tuple[int, ...], Any]] = field(
        default_factory=dict, init=False, repr=False
    )  # by `mixing`: fields of a call, and what they point to


def depthwise_filters(bank: Tensor, groups: int, kept: Tensor) -> Filters:
    """The filters of a convolution with one channel in each group; `kept`, int32 (m,), is each output's."""
    channels = torch.arange(groups, dtype=torch.int32, device=kept.device)
    return Filters(1, bank, groups, channels.repeat_interleave(len(kept) // groups), kept.contiguous())


def mixing(filters: Filters, alpha: Tensor | None, m: int, channels: int, taps: int) -> tuple[int, ...]:
    """D's fields of a call for m outputs, from `mix` to `bank`; its tables are checked once.

    A table of another dtype or device is a TypeError; tables that do not fit each other, or the kernel, a
    ValueError.
    """
    if alpha is None or not filters.terms:
        return _NO_MIXING
    size = m, channels, taps
    if size not in filters.checked:
        kept: list[Tensor] = []
        filters.checked[size] = _mixing(filters, *size, kept), kept
    return filters.checked[size][0]


def _mixing(filters: Filters, m: int, channels: int, taps: int, kept: list[Tensor]) -> tuple[int, ...]:
    terms, maps, q, bank = filters.terms, filters.maps, filters.cosine, filters.bank
    if filters.rows:
        return _ROWS, 0, 0, terms, 0, 0, 0, filters.rows, 0, 0, 0, 0
    first, second = (*filters.mix, None, None)[:2]
    rank = 0 if first is None or second is None else first.shape[0]
    rounds, count = maps // q if q else 0, 0 if bank is None else bank.numel() // taps
    if not count or (q and not (rounds * q == maps and channels <= q and has_plan(q))):
        raise ValueError(f"D's tables do not fit a convolution of {channels} channels to {m}: {filters}")
    if rounds > 1 and filters.signs is None:
        raise ValueError(f"D has {rounds} transforms of the channels, and no signs for them: {filters}")
    return (
        _COSINE if q else (_NONE, _PLAIN, _PRODUCT)[len(filters.mix)], maps, rank, terms, count,
        address(first, (rank or maps) * channels, "D's mixing", kept),
        address(second, maps * rank, "D's second mixing", kept),
        q, address(filters.signs, rounds * channels, "D's signs", kept),
        address(filters.source, m * terms, "the maps of D's terms", kept, torch.int32),
        address(filters.filter, m * terms, "the filters of D's terms", kept, torch.int32),
        address(bank, count * taps, "D's filters", kept),
    )  # fmt: skip
