"""The mean of networks whose supports differ."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dctps.dynamic.support import change_support_, smallest
from dctps.nn import DpSLayer


@torch.no_grad()
def average_over_union(
    models: Sequence[nn.Module], weights: Sequence[float] | None = None, *, keep_nnz: bool = False
) -> nn.Module:
    """The weighted mean of networks, each S counted as 0 outside of its own support.

    sum_i w_i W_i / sum_i w_i, whose support is the union of theirs. So is every other floating-point number
    averaged, running statistics included; integers are the first network's. Sums are in float64.

    Args:
        models: at least one; all made alike, up to their supports, which RigL, SET or DSR may have moved.
        weights: w_i >= 0, as the number of images that each has trained on; all alike by default.
        keep_nnz: cut each layer back to the nnz that it has in the first network: the largest values of the
            mean stay, of equal ones the earlier. Else the mean is exact, and each layer has its union's nnz.

    Returns:
        a new network; the given ones stay as they are.

    Raises:
        ValueError: no network, weights that do not fit or sum to 0, or networks that differ in more than
            their supports.

    Reference: the server's step of Bibikar et al., "Federated dynamic sparse training", AAAI 2022.
    """
    shares = _shares(models, weights)
    mean = copy.deepcopy(models[0])
    modules = [list(model.modules()) for model in models]
    own_modules = list(mean.modules())
    if any(list(map(type, own)) != list(map(type, own_modules)) for own in modules):
        raise ValueError("the networks have different layers: average those of one architecture")
    for own, *theirs in zip(own_modules, *modules, strict=True):
        moved = isinstance(own, DpSLayer)
        if moved:
            _join_(own, theirs, shares, keep_nnz)
        for key, tensor in [*own._parameters.items(), *own._buffers.items()]:
            if tensor is None or not tensor.is_floating_point() or (moved and key == "values"):
                continue
            given = [(other._parameters | other._buffers)[key] for other in theirs]
            if any(other is None or other.shape != tensor.shape for other in given):
                raise ValueError(f"{key!r} of a {type(own).__name__} has another shape in one network")
            tensor.copy_(sum(w * other.double() for w, other in zip(shares, given, strict=True)))
    return mean


def _shares(models: Sequence[nn.Module], weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * len(models) if weights is None else list(weights)
    total = math.fsum(weights)
    if not models or len(weights) != len(models):
        raise ValueError(f"give one weight for each network: {len(weights)} for {len(models)}")
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise ValueError(f"weights must be 0 or more, and not all 0, got {weights}")
    return [weight / total for weight in weights]


def _join_(own: DpSLayer, theirs: Sequence[DpSLayer], shares: Sequence[float], keep_nnz: bool) -> None:
    """Give a layer the mean of S over `theirs`."""
    for other in theirs:
        if other.offset != own.offset:
            raise ValueError(
                f"layer {own.offset.layer!r} has the offset {other.offset.spec} in one network and "
                f"{own.offset.spec} in another: build all from one seed"
            )
    where = own.support.device
    support = torch.cat([other.support.to(where) for other in theirs]).unique()
    values: Tensor = torch.zeros(len(support), dtype=torch.float64, device=where)
    for share, other in zip(shares, theirs, strict=True):
        at = torch.searchsorted(support, other.support.to(where))
        values[at] += share * other.values.to(where, torch.float64)
    if keep_nnz and len(support) > own.nnz:
        keep = torch.ones_like(support, dtype=torch.bool)
        keep[smallest(values, len(support) - own.nnz)] = False
        support, values = support[keep], values[keep]
    dropped = own.support[torch.isin(own.support, support, invert=True)]
    change_support_(own, dropped, support[torch.isin(support, own.support, invert=True)])
    own.values.copy_(values)
