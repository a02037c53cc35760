import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import oracles

from dctps.sparse import budget, check_support, random_support


@pytest.mark.parametrize(
    ("density", "size", "expected"),
    [
        (0.1, 5, 0),  # 0.5 to even
        (0.3, 5, 2),  # 1.5 to even
        (0.5, 5, 2),
        (0.7, 5, 4),  # 3.5 to even
        (1.0, 7, 7),
        (1e-4, 23_467_712, 2347),
        (0.001, 23_467_712, 23_468),
        (1e-5, 10**9, 10_000),
    ],
)
def test_budget_rounds_the_decimal_half_to_even(density: float, size: int, expected: int) -> None:
    assert budget(density, size) == expected


@pytest.mark.parametrize("density", [-1e-9, -0.1, 1.5, 2, float("nan"), float("inf")])
def test_impossible_densities(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \[0, 1\]"):
        budget(density, 10)


def test_golden_support() -> None:
    """Frozen: a random support costs a seed in a file."""
    drawn = random_support(2400, 8, seed=0, layer="features.0")
    assert drawn.tolist() == [946, 1011, 1033, 1102, 1579, 1750, 2103, 2213]


@given(nnz=st.integers(0, 50), seed=st.integers(0, 99))
def test_random_support_is_the_specified_sample(nnz: int, seed: int) -> None:
    drawn = random_support(50, nnz, seed=seed, layer="fc")
    assert drawn.tolist() == oracles.sample(f"{seed}/fc/support", nnz, 50)


def test_masks_and_positions_become_sorted_positions() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    assert check_support(mask, (2, 2)).tolist() == [0, 3]
    assert check_support(torch.tensor([3, 0], dtype=torch.int32), (2, 2)).tolist() == [0, 3]
    assert check_support(torch.empty(0, dtype=torch.int64), (2, 2)).tolist() == []
    grid = torch.zeros(2, 3, 2, dtype=torch.bool)
    grid[1, 2, 0] = True
    assert check_support(grid, (2, 3, 2)).tolist() == [10]


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (torch.ones(2, 3, dtype=torch.bool), "mask has shape"),
        (torch.tensor([0, 4]), r"0\.\.3"),
        (torch.tensor([-1, 2]), r"0\.\.3"),
        (torch.tensor([1, 2, 1]), "position 1 is named more than once"),
        (torch.tensor([0.0, 1.0]), "bool mask"),
        (torch.tensor([[0, 1]]), "bool mask"),
    ],
)
def test_wrong_supports_say_what_is_wrong(support: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_support(support, (2, 2))
