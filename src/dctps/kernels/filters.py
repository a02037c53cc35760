"""D's convolution as small filters on mixed channels, which is how fast paths apply it.

    (D x)[o] = sum_t  bank[filter[o, t]] * (mix x)[source[o, t]]

`*` is the convolution of one map with one filter of the kernel's size; `mix` maps the channels of each pixel
to `maps` maps: by nothing, by a product of small matrices, or by a cosine transform.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


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
    checked: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # by `conv.mixing`


def depthwise_filters(bank: Tensor, groups: int, kept: Tensor) -> Filters:
    """The filters of a convolution with one channel in each group.

    Args:
        bank: float32 (filters, kh * kw).
        groups: channels.
        kept: int32 (m,), each output's filter.
    """
    source = torch.arange(groups, dtype=torch.int32, device=kept.device).repeat_interleave(
        len(kept) // groups
    )
    return Filters(1, bank, groups, source, kept.contiguous())
