import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dctps import build_offset
from dctps.kernels import conv_weight
from dctps.offsets import list_offsets
from dctps.testing import OffsetContract


class TestZero(OffsetContract):
    name = "zero"


class TestDCT(OffsetContract):
    name = "dct"


class TestSDCT(OffsetContract):
    name = "sdct"


class TestHadamard(OffsetContract):
    name = "hadamard"


class TestGaussian(OffsetContract):
    name = "gaussian"


def scipy_dct_block(m: int, n: int) -> np.ndarray:
    q = max(m, n)
    return scipy.fft.dct(np.eye(q), norm="ortho", axis=0)[:m, :n]


@given(m=st.integers(1, 300), n=st.integers(1, 300))
def test_dct_is_scipys_top_left_block(m: int, n: int) -> None:
    dense = build_offset("dct", (m, n)).to_dense(dtype=torch.float64)
    assert np.abs(dense.numpy() - scipy_dct_block(m, n)).max() < 1e-12


@given(
    groups=st.integers(1, 4),
    outputs=st.integers(1, 9),
    channels=st.integers(1, 6),
    kh=st.integers(1, 4),
    kw=st.integers(1, 4),
)
def test_dct_reads_patches_channel_fastest(
    groups: int, outputs: int, channels: int, kh: int, kw: int
) -> None:
    m, n = groups * outputs, channels * kh * kw
    dense = build_offset("dct", (m, channels, kh, kw), groups=groups).to_dense(dtype=torch.float64)
    block = scipy_dct_block(m, n)
    for o in range(m):
        for c in range(channels):
            for i in range(kh):
                for j in range(kw):
                    assert abs(dense[o, c, i, j] - block[o, (i * kw + j) * channels + c]) < 1e-12


@given(
    groups=st.integers(1, 3),
    outputs=st.integers(1, 40),
    channels=st.integers(1, 5),
    kh=st.integers(1, 3),
    kw=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_sdct_deals_each_separable_cosine_out_once_a_round(
    groups: int, outputs: int, channels: int, kh: int, kw: int, seed: int
) -> None:
    n = channels * kh * kw
    offset = build_offset("sdct", (groups * outputs, channels, kh, kw), groups=groups, seed=seed)
    dense = offset.to_dense(dtype=torch.float64).numpy()
    axes = [scipy.fft.dct(np.eye(size), norm="ortho", axis=0) for size in (channels, kh, kw)]
    basis = np.einsum("uc,ai,bj->uabcij", *axes).reshape(n, channels, kh, kw)
    for group in range(groups):
        filters = dense[group * outputs : (group + 1) * outputs]
        for start in range(0, outputs, n):
            dealt = filters[start : start + n]
            if start:  # later rounds carry one sign per channel and one per position: a sign of rank one
                dealt = np.abs(dealt)
                candidates = np.abs(basis)
            else:
                candidates = basis
            distance = np.abs(dealt[:, None] - candidates[None]).max(axis=(2, 3, 4))
            assert (distance.min(axis=1) < 1e-12).all()
            if not start:
                chosen = distance.argmin(axis=1)
                assert len(set(chosen)) == len(chosen)


def test_sdct_signs_of_later_rounds_are_separable_and_not_trivial() -> None:
    channels, k = 8, 3
    n = channels * k * k
    dense = build_offset("sdct", (3 * n, channels, k, k)).to_dense(dtype=torch.float64).numpy()
    for r in (1, 2):
        block = dense[r * n : (r + 1) * n]
        # The constant function shows its round's signs.
        constant = block[np.abs(np.abs(block).reshape(n, -1) - n**-0.5).max(1) < 1e-12]
        signs = np.sign(constant[0]).reshape(channels, k * k)
        assert np.linalg.matrix_rank(signs) == 1
        assert 0 < (signs > 0).mean() < 1
        orthonormal = block.reshape(n, n)
        assert np.abs(orthonormal @ orthonormal.T - np.eye(n)).max() < 1e-12


@given(m=st.integers(1, 40), n=st.integers(1, 40), seed=st.integers(0, 9))
def test_hadamard_rows_are_sylvesters_with_common_signs(m: int, n: int, seed: int) -> None:
    offset = build_offset("hadamard", (m, n), seed=seed)
    dense = offset.to_dense(dtype=torch.float64).numpy() * np.sqrt(n)
    q = 1 << (max(m, n) - 1).bit_length()
    sylvester = scipy.linalg.hadamard(q)[:, :n]
    signs = offset._drawn(torch.device("cpu"))[1].numpy()
    rows = offset._drawn(torch.device("cpu"))[0].numpy()
    assert len(set(rows.tolist())) == m
    assert np.abs(dense - sylvester[rows] * signs).max() < 1e-9


def test_gaussian_has_the_law_it_names() -> None:
    dense = build_offset("gaussian", (300, 200), seed=1).to_dense(dtype=torch.float64) * 200**0.5
    assert abs(dense.mean()) < 4 / 60_000**0.5
    assert abs(dense.var() - 1) < 5 * (2 / 60_000) ** 0.5
    assert abs((dense**4).mean() - 3) < 0.15


def test_gaussian_entries_do_not_depend_on_the_block_they_are_drawn_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = build_offset("gaussian", (50, 41)).to_dense()
    monkeypatch.setattr("dctps.offsets.gaussian._BLOCK", 17)
    assert torch.equal(build_offset("gaussian", (50, 41)).to_dense(), whole)


def test_depthwise_dct_filters_have_the_norms_of_low_frequencies() -> None:
    norms = build_offset("dct", (960, 1, 3, 3), groups=960).to_dense().flatten(1).norm(dim=1)
    expected = np.linalg.norm(scipy_dct_block(960, 9), axis=1)
    assert np.abs(norms.numpy() - expected).max() < 1e-6
    assert norms.min() > 0.002 and norms.max() < 0.14


@pytest.mark.parametrize("name", ["sdct", "hadamard", "gaussian"])
def test_draws_differ_by_seed_and_by_layer(name: str) -> None:
    base = build_offset(name, (12, 20), seed=0, layer="a").to_dense()
    assert not torch.equal(base, build_offset(name, (12, 20), seed=1, layer="a").to_dense())
    assert not torch.equal(base, build_offset(name, (12, 20), seed=0, layer="b").to_dense())


def test_golden_draws() -> None:
    """Frozen: files and seeds of users rely on them. Made once by an independent big-integer computation."""
    sdct = build_offset("sdct", (5, 6), seed=7, layer="fc")
    hadamard = build_offset("hadamard", (5, 6), seed=7, layer="fc")
    from tests.support.oracles import permutation, signs

    assert sdct._drawn(torch.device("cpu"))[0].tolist() == permutation("7/fc/offset", 6)[:5]
    rows, flips = hadamard._drawn(torch.device("cpu"))
    assert rows.tolist() == permutation("7/fc/offset", 8)[:5]
    assert flips.tolist() == signs("7/fc/offset-signs", 6)


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown offset 'dtc': did you mean 'dct'"):
        build_offset("dtc", (2, 2))


@pytest.mark.parametrize(("shape", "groups"), [((3,), 1), ((0, 3), 1), ((4, 2), 3), ((4, 2), 0)])
def test_impossible_shapes(shape: tuple[int, ...], groups: int) -> None:
    for name in list_offsets():
        with pytest.raises(ValueError, match=r"positive sizes|must divide"):
            build_offset(name, shape, groups=groups)


def has_subnormals(w: torch.Tensor) -> bool:
    return bool(((w != 0) & (w.abs() < torch.finfo(w.dtype).tiny)).any())


@pytest.mark.parametrize("name", ["dct", "sdct", "hadamard", "gaussian"])
@given(m=st.integers(1, 40), channels=st.integers(1, 9), kh=st.integers(1, 5), kw=st.integers(1, 5))
@example(m=64, channels=3, kh=3, kw=3)  # the first layer of most networks
def test_no_weight_is_subnormal(name: str, m: int, channels: int, kh: int, kw: int) -> None:
    """A convolution with one such weight takes several times as long."""
    offset = build_offset(name, (m, channels, kh, kw))
    assert not has_subnormals(offset.to_dense())
    if offset.has_filters:
        none = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for layout in (torch.contiguous_format, torch.channels_last):
            form = offset.weight_filters()
            assert not has_subnormals(conv_weight(*none, torch.ones(1), form, offset.shape, layout))
