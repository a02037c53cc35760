import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import oracles

from dctps.selection import allocate, list_allocations
from dctps.selection.allocation import share_out
from dctps.sparse import budget

LENET = {"c1": (6, 3, 5, 5), "c2": (16, 6, 5, 5), "f1": (120, 400), "f2": (84, 120), "f3": (10, 84)}
DEPTHWISE = {f"d{i}": (64, 1, 3, 3) for i in range(9)} | {f"p{i}": (64, 64, 1, 1) for i in range(9)}


def vgg19() -> dict[str, tuple[int, ...]]:
    shapes, channels = {}, 3
    for i, width in enumerate([64] * 2 + [128] * 2 + [256] * 4 + [512] * 8):
        shapes[f"conv{i}"] = (width, channels, 3, 3)
        channels = width
    return shapes | {"fc": (10, 512)}


NETWORKS = {"lenet": LENET, "depthwise": DEPTHWISE, "vgg19": vgg19(), "one": {"w": (3, 5)}}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("density", [1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", list_allocations())
def test_totals_are_exact(name: str, density: float, network: str) -> None:
    shapes = NETWORKS[network]
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    total = budget(density, sum(sizes.values()))
    counts = allocate(name, shapes, total)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == total
    assert all(0 <= counts[layer] <= sizes[layer] for layer in shapes)


def share_out_by_hand(shares: dict[str, int], sizes: dict[str, int], total: int) -> dict[str, int]:
    """One layer at a time: fill the most over-full, divide the rest anew, round by largest remainder."""
    counts: dict[str, int] = {}
    while True:
        rest = [layer for layer in shares if layer not in counts]
        left = total - sum(counts.values())
        weight = sum(shares[layer] for layer in rest)
        if not weight:
            return counts | dict.fromkeys(rest, 0)
        ideal = {layer: Fraction(left * shares[layer], weight) for layer in rest}
        over = [layer for layer in rest if shares[layer] and ideal[layer] >= sizes[layer]]
        if not over:
            break
        worst = max(over, key=lambda layer: ideal[layer] / sizes[layer])
        counts[worst] = sizes[worst]
    floors = {layer: int(ideal[layer]) for layer in rest}
    spare = left - sum(floors.values())
    by_remainder = sorted(
        rest, key=lambda layer: (-(ideal[layer] - floors[layer]), list(shares).index(layer))
    )
    for layer in by_remainder[:spare]:
        floors[layer] += 1
    return counts | floors


@given(
    layers=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=7), data=st.data()
)
def test_shares_are_divided_by_largest_remainder(layers: list[tuple[int, int]], data: st.DataObject) -> None:
    shares = {str(i): share for i, (share, _) in enumerate(layers)}
    sizes = {str(i): size for i, (_, size) in enumerate(layers)}
    room = sum(sizes[layer] for layer in sizes if shares[layer])
    total = data.draw(st.integers(0, room))
    got = share_out({k: Fraction(v) for k, v in shares.items()}, {k: (v, 1) for k, v in sizes.items()}, total)
    assert got == share_out_by_hand(shares, sizes, total)


def test_the_laws() -> None:
    assert allocate("epl", LENET, 10) == {"c1": 2, "c2": 2, "f1": 2, "f2": 2, "f3": 2}
    assert allocate("epl", LENET, 12) == {"c1": 3, "c2": 3, "f1": 2, "f2": 2, "f3": 2}  # ties to the earlier
    assert allocate("epf", LENET, 236) == {"c1": 6, "c2": 16, "f1": 120, "f2": 84, "f3": 10}
    erk = {"c1": 6 + 3 + 5 + 5, "c2": 16 + 6 + 5 + 5, "f1": 520, "f2": 204, "f3": 94}
    assert allocate("erk", LENET, sum(erk.values())) == erk
    widths = {"a": (64, 3, 3, 3), "b": (128, 64, 3, 3), "c": (64, 512, 1, 1), "d": (512, 512)}
    assert allocate("narrow", widths, 64 + 16 + 1 + 1) == {"a": 64, "b": 16, "c": 1, "d": 1}
    # 450 weights in c1 and 840 in f3 are full; the three others share the rest
    assert allocate("epl", LENET, 3000 * 5) == {"c1": 450, "c2": 2400, "f1": 5655, "f2": 5655, "f3": 840}


def test_uniform_counts_are_those_of_one_draw_over_the_network() -> None:
    drawn = oracles.sample("3//counts", 40, 61_770)
    ends, expected, start = [], {}, 0
    for layer, shape in LENET.items():
        end = start + math.prod(shape)
        expected[layer] = sum(start <= position < end for position in drawn)
        ends.append(end)
        start = end
    assert allocate("uniform", LENET, 40, seed=3) == expected


def test_shares_by_layer_and_functions() -> None:
    shapes = {"a": (10, 10), "b": (10, 10)}
    assert allocate({"a": 3, "b": 1}, shapes, 8) == {"a": 6, "b": 2}
    assert allocate({"a": 0, "b": 0.5}, shapes, 8) == {"a": 0, "b": 8}
    assert allocate(lambda shapes, total, seed: {"a": total, "b": 0}, shapes, 8) == {"a": 8, "b": 0}
    with pytest.raises(ValueError, match=r"missing \['b'\], not layers \['c'\]"):
        allocate({"a": 1, "c": 1}, shapes, 8)
    with pytest.raises(ValueError, match="hold 100 weights, fewer than the 150"):
        allocate({"a": 1, "b": 0}, shapes, 150)
    with pytest.raises(ValueError, match="finite and not negative"):
        allocate({"a": 1, "b": -1}, shapes, 8)
    with pytest.raises(ValueError, match="the allocation gave 7 weights for 8"):
        allocate(lambda shapes, total, seed: {"a": 7, "b": 0}, shapes, 8)
    with pytest.raises(ValueError, match="unknown allocation 'epll': did you mean 'epl'"):
        allocate("epll", shapes, 8)
