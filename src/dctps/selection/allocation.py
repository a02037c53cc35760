"""How many weights of each layer train: exact totals, 0 <= nnz <= size in every layer.

An allocation is a function `(shapes, total, seed) -> {layer: nnz}`; most are shares, divided by
`share_out`. To add one, decorate it with `register_allocation("name")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

import torch

from dctps.arguments import real, whole
from dctps.counter import derive_key, sample
from dctps.names import Registry

Shape = tuple[int, ...]
Allocation = Callable[[Mapping[str, Shape], int, int], dict[str, int]]

ALLOCATIONS: Registry[Allocation] = Registry("allocation", reserved=["global"])


def register_allocation(name: str) -> Callable[[Allocation], Allocation]:
    """Decorator that gives an allocation its name.

    Raises:
        ValueError: the name is taken.
    """
    return ALLOCATIONS.register(name)


def list_allocations() -> list[str]:
    """All registered names."""
    return list(ALLOCATIONS)


def allocate(
    allocation: str | Mapping[str, float] | Allocation,
    shapes: Mapping[str, Shape],
    total: int,
    *,
    seed: int = 0,
) -> dict[str, int]:
    """How many weights of each layer train.

    Args:
        allocation: a registered name, relative shares by layer, or a function.
        shapes: of the weights by layer, in the network's order: (out, in) or (out, in / groups, kh, kw).
        total: K, the number of weights that train.
        seed: of `uniform`'s draw.

    Returns:
        counts by layer, in the order of `shapes`; their sum is `total`.

    Raises:
        ValueError: an unknown name; shares that miss a layer, name another, or are negative; more than
            the layers hold; or a function that broke its promise.
    """
    total, seed = whole("total", total, least=0), whole("seed", seed)
    if isinstance(allocation, str):
        allocation = ALLOCATIONS.find(allocation)
    if isinstance(allocation, Mapping):
        check_names(allocation, shapes, "the shares must name each converted layer")
        shares = {n: Fraction(real(f"the share of layer {n!r}", share)) for n, share in allocation.items()}
        if bad := [name for name, share in shares.items() if share < 0]:
            raise ValueError(f"shares must be finite and not negative; see {bad}")
        counts = share_out(shares, shapes, total)
    elif callable(allocation):
        found = allocation(shapes, total, seed)
        counts = {name: whole(f"the allocation's count of layer {name!r}", n) for name, n in found.items()}
    else:
        raise ValueError(
            f"an allocation is a name ({', '.join(ALLOCATIONS)}), shares by layer or a function, got "
            f"{allocation!r}"
        )
    wrong = [name for name, shape in shapes.items() if not 0 <= counts.get(name, -1) <= math.prod(shape)]
    if wrong or sum(counts.values()) != total:
        given = sum(counts.values())
        raise ValueError(f"the allocation gave {given} weights for {total}; layers off: {wrong}")
    return counts


def share_out(shares: Mapping[str, Fraction], shapes: Mapping[str, Shape], total: int) -> dict[str, int]:
    """Divide `total` in proportion to `shares`, no layer above its size.

    Layers whose share exceeds them are full and leave; the rest is divided again. What remains after rounding
    down goes to the largest remainders, ties to the earlier layer. Fewer weights with a share than `total`
    are a ValueError.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    counts = dict.fromkeys(shapes, 0)
    active = [name for name in shapes if shares[name] > 0]
    if total > (room := sum(sizes[name] for name in active)):
        raise ValueError(f"layers with a positive share hold {room} weights, fewer than the {total} asked")
    left = total
    while active:
        whole = sum((shares[name] for name in active), Fraction(0))
        ideal = {name: left * shares[name] / whole for name in active}
        full = [name for name in active if ideal[name] >= sizes[name]]
        if not full:
            break
        for name in full:
            counts[name] = sizes[name]
            left -= sizes[name]
        active = [name for name in active if name not in full]
    else:
        return counts
    counts.update({name: math.floor(ideal[name]) for name in active})
    left -= sum(counts[name] for name in active)
    # sorted() is stable: among equal remainders the earlier layer comes first
    for name in sorted(active, key=lambda name: counts[name] - ideal[name])[:left]:
        counts[name] += 1
    return counts


@register_allocation("epl")
def equal_per_layer(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """K / L in each of L layers (Price and Tanner 2021, section 4)."""
    return share_out(dict.fromkeys(shapes, Fraction(1)), shapes, total)


@register_allocation("epf")
def equal_per_filter(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """In proportion to a layer's filters, its outputs (Price and Tanner 2021, section 4)."""
    return share_out({name: Fraction(shape[0]) for name, shape in shapes.items()}, shapes, total)


@register_allocation("erk")
def erdos_renyi_kernel(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """In proportion to out + in / groups + kh + kw (Evci et al., "Rigging the Lottery", ICML 2020)."""
    return share_out({name: Fraction(sum(shape)) for name, shape in shapes.items()}, shapes, total)


@register_allocation("narrow")
def inverse_square_of_width(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """In proportion to 1 / max(out, in / groups)^2: most in narrow layers, whose weights meet most pixels.

    In a network that halves its images where it doubles its channels a layer's share is that of its outputs'
    pixels.
    """
    return share_out({n: Fraction(1, max(shape[:2]) ** 2) for n, shape in shapes.items()}, shapes, total)


@register_allocation("uniform")
def uniform(shapes: Mapping[str, Shape], total: int, seed: int = 0) -> dict[str, int]:
    """Every weight alike: counts of one draw of K of the N positions, keyed (seed, "", "counts")."""
    ends = torch.tensor([math.prod(shape) for shape in shapes.values()], device="cpu").cumsum(0)
    drawn = sample(derive_key(seed, "", "counts"), total, int(ends[-1]), device="cpu")
    below = torch.searchsorted(drawn, ends).tolist()
    starts = [0, *below[:-1]]
    return {name: end - start for name, start, end in zip(shapes, starts, below, strict=True)}


def check_names(given: Collection[str], layers: Collection[str], start: str, end: str = "") -> None:
    """Raise a ValueError, from `start` to `end`, unless the names given are exactly those of the layers."""
    missing, unknown = [n for n in layers if n not in given], [n for n in given if n not in layers]
    if missing or unknown:
        raise ValueError(f"{start}: missing {missing}, not layers {unknown}{end}")
