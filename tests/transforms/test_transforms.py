import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps.transforms import (
    dct,
    dct_ref,
    dct_rows,
    hadamard,
    hadamard_ref,
    hadamard_rows,
    idct,
    idct_ref,
    table_bytes,
)
from dctps.transforms.tables import clear_tables

SIZES = st.integers(1, 600)


def draws(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(shape[-1]))


@given(n=SIZES)
def test_dct_is_scipys(n: int) -> None:
    x = draws(2, 3, n)
    assert np.abs(dct(x).numpy() - scipy.fft.dct(x.numpy(), norm="ortho")).max() < 1e-12
    assert np.abs(idct(x).numpy() - scipy.fft.idct(x.numpy(), norm="ortho")).max() < 1e-12


@given(n=SIZES)
def test_slow_twins_agree_in_both_precisions(n: int) -> None:
    x = draws(4, n)
    for fast, slow in ((dct, dct_ref), (idct, idct_ref)):
        assert (fast(x) - slow(x)).abs().max() < 1e-12
        # float32: a few roundings for each of the log2(n) stages, against the row's norm
        error = (fast(x.float()) - slow(x.float())).norm(dim=1) / x.norm(dim=1)
        assert error.max() < 1e-6


@given(n=SIZES)
def test_idct_undoes_dct(n: int) -> None:
    x = draws(2, n)
    assert (idct(dct(x)) - x).abs().max() < 1e-12


@given(q=st.integers(1, 300), fine=st.integers(1, 40), data=st.data())
def test_rows_without_a_transform(q: int, fine: int, data: st.DataObject) -> None:
    frequencies = torch.tensor(data.draw(st.lists(st.integers(0, q - 1), min_size=1, max_size=9)))
    coarse = -(-q // fine)
    matrix = torch.from_numpy(scipy.fft.dct(np.eye(q), norm="ortho", axis=0))
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        rows = dct_rows(frequencies, q, coarse, fine, dtype=dtype)
        assert rows.dtype == dtype and rows.shape == (len(frequencies), coarse, fine)
        assert (rows.flatten(1)[:, :q].double() - matrix[frequencies]).abs().max() < tolerance


@given(p=st.integers(0, 11))
def test_hadamard_is_scipys(p: int) -> None:
    q = 2**p
    x = draws(3, q)
    expected = x.numpy() @ scipy.linalg.hadamard(q)
    assert np.abs(hadamard(x).numpy() - expected).max() < 1e-10
    assert np.abs(hadamard_ref(x).numpy() - expected).max() < 1e-10
    rows = torch.arange(0, q, max(q // 5, 1))
    fine = 2 ** (p // 2)
    entries = hadamard_rows(rows, q // fine, fine, dtype=torch.float64).flatten(1)
    assert np.array_equal(entries.numpy(), scipy.linalg.hadamard(q)[rows.numpy()])


@pytest.mark.parametrize("q", [3, 12])
def test_hadamard_needs_a_power_of_two(q: int) -> None:
    with pytest.raises(ValueError, match=f"power-of-two length, got {q}"):
        hadamard(torch.zeros(2, q))


def test_transforms_are_differentiable() -> None:
    for transform, n in ((dct, 7), (idct, 8), (hadamard, 8)):
        assert torch.autograd.gradcheck(transform, (draws(2, n).requires_grad_(),))


def test_non_contiguous_inputs() -> None:
    x = draws(9, 5).T
    for transform in (dct, idct):
        assert torch.equal(transform(x), transform(x.contiguous()))


def test_tables_are_counted_shared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_tables()
    assert table_bytes() == 0
    dct(torch.zeros(1, 1000))
    once = table_bytes()
    assert once == 501 * 8  # complex64
    dct(torch.ones(5, 1000))
    assert table_bytes() == once
    monkeypatch.setattr("dctps.transforms.tables._MAX_TABLES", 3)
    for n in range(10, 20):
        dct(torch.zeros(1, n))
    assert table_bytes() == 8 * sum(n // 2 + 1 for n in (17, 18, 19))
