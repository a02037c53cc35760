"""Projections against naive loops over the generator's second implementation, in Python's own numbers."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import oracles

from dctps.subspace import DenseProjection, build_projection, projection, projections

NAMES = ("dense", "sparse", "fastfood")


def naive(name, size, dimensions, seed):
    """P, float64, entry by entry from its definition."""
    text, signs = f"{seed}//projection", f"{seed}//projection-signs"
    if name == "dense":
        g = np.array(
            [[oracles.normal(text, i * dimensions + j) for j in range(dimensions)] for i in range(size)]
        )
        return g / np.sqrt((g * g).sum(0))
    if name == "sparse":
        places = oracles.sample(
            text, min(round(dimensions * math.sqrt(size)), size * dimensions), size * dimensions
        )
        p = np.zeros((size, dimensions))
        for place, sign in zip(places, oracles.signs(signs, len(places)), strict=True):
            p[place // dimensions, place % dimensions] = sign
        return p / np.maximum(np.sqrt((p * p).sum(0)), 1)
    length = 2 ** math.ceil(math.log2(size))
    h = scipy.linalg.hadamard(length).astype(float)
    b = np.diag(oracles.signs(signs, length)).astype(float)
    g = np.array([oracles.normal(f"{seed}//projection-scales", i) for i in range(length)])
    pi = np.eye(length)[oracles.permutation(text, length)]
    # The constant as Li et al. write it.
    whole = h @ pi @ np.diag(g) @ h @ b / (math.sqrt(length * (g * g).sum()) * math.sqrt(size / length))
    return whole[:size, :dimensions]


@st.composite
def sizes(draw):
    size = draw(st.integers(1, 40))
    return size, draw(st.integers(1, size)), draw(st.integers(0, 5))


@pytest.mark.parametrize("name", NAMES)
@given(case=sizes())
def test_each_is_its_definition(name, case):
    p = build_projection(name, *case)
    expected = torch.from_numpy(naive(name, *case))
    assert torch.allclose(p.to_dense(dtype=torch.float64), expected, atol=1e-9)
    g = torch.randn(p.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(p.transpose(g), expected.T @ g, atol=1e-9)
    assert torch.allclose(p.transpose(g.float()).double(), expected.T @ g, atol=1e-5)


@given(case=sizes())
def test_a_dense_one_is_drawn_in_blocks_of_rows(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "DRAWN_AT_ONCE", 7)
        expected = torch.from_numpy(naive("dense", *case))
        assert torch.allclose(DenseProjection(*case).to_dense(dtype=torch.float64), expected, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_dot_test_and_derivatives_of_every_order(name):
    p = build_projection(name, 23, 6, 1)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    g = torch.randn(23, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.testing.assert_close(p(v) @ g, v @ p.transpose(g), rtol=1e-12, atol=0)
    for function, x in ((p, v), (p.transpose, g)):
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).square(), x)
    rows = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    dense = p.to_dense(dtype=torch.float64)
    assert torch.allclose(torch.func.vmap(p)(rows), rows @ dense.T)
    assert torch.allclose(torch.func.jacrev(p)(v), dense)
    assert torch.allclose(torch.func.jacfwd(p.transpose)(g), dense.T)


@pytest.mark.parametrize("name", NAMES)
def test_columns_have_norm_one_and_are_nearly_orthogonal(name):
    size, dimensions = 5000, 200
    p = build_projection(name, size, dimensions, 3).to_dense(dtype=torch.float64)
    norms = p.norm(dim=0)
    if name == "fastfood":  # exact over all L rows, and over the first D on average
        assert float(norms.square().mean()) == pytest.approx(1, abs=0.02)
        assert float((norms - 1).abs().max()) < 0.1
    else:
        assert torch.allclose(norms, torch.ones(dimensions, dtype=torch.float64))
    # Two random unit vectors' product has the variance 1/D; two of Fastfood's columns share G^2, of
    # variance 2, and by that have up to twice as much again.
    products = (p.T @ p)[torch.triu_indices(dimensions, dimensions, 1).unbind()]
    variance = float(products.square().mean()) * size
    assert 0.9 < variance < (2.4 if name == "fastfood" else 1.1)
    assert float(products.abs().max()) < 6 / math.sqrt(size)
    assert abs(float(p.mean())) < 4 / math.sqrt(size * size * dimensions)


def test_the_sparse_one_has_its_share_of_entries():
    p = build_projection("sparse", 10_000, 50, 0)
    assert p.nnz == 50 * 100 == int(torch.count_nonzero(p.to_dense()))
    counts = torch.count_nonzero(p.to_dense(), 0)
    assert int(counts.min()) > 60 and int(counts.max()) < 140  # binomial: 100 with a deviation of 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_held_is_what_is_said(name, dtype):
    p = build_projection(name, 300, 20, 0)
    held = p._drawn(torch.zeros(1, dtype=dtype))
    assert sum(t.nbytes for t in held) == p.held_bytes(dtype.itemsize)
    assert copy.deepcopy(p) is p
    again = pickle.loads(pickle.dumps(p))
    assert again == p and again._held == {} and len(pickle.dumps(p)) < 1000
    assert build_projection(**p.spec) == p != build_projection(**{**p.spec, "seed": 1})


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_autocast_are_computed_in_float32(name):
    p = build_projection(name, 300, 20, 0)
    v = torch.randn(20, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(p(v), p(v.float()))
    assert p(v.bfloat16()).dtype == torch.float32
    assert torch.equal(p(v.bfloat16()), p(v.bfloat16().float()))


def test_auto_is_dense_up_to_the_limit():
    assert projection.DENSE_LIMIT == 10_000 * 10_000
    assert build_projection("auto", 10_000, 10_000).name == "dense"
    assert build_projection("auto", 100_000_000, 1).name == "dense"
    assert build_projection("auto", 10_001, 10_000).name == "fastfood"
    assert build_projection("auto", 25_000_000, 25_000).name == "fastfood"


def test_mistakes():
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        build_projection("dens", 10, 3)
    for dimensions in (0, 11):
        with pytest.raises(ValueError, match=f"dimensions must be from 1 to .* 10, got {dimensions}"):
            build_projection("dense", 10, dimensions)
