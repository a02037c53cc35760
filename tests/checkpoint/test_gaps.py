import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctps.checkpoint import gaps
from dctps.counter import derive_key, sample


def bound(size: int, nnz: int) -> float:
    """log2 C(size, nnz)."""
    return (math.lgamma(size + 1) - math.lgamma(nnz + 1) - math.lgamma(size - nnz + 1)) / math.log(2)


@st.composite
def supports(draw):
    """Uniform, clustered, evenly spaced, sparse, dense, empty and full ones."""
    size = draw(st.integers(1, 3000))
    kind = draw(st.sampled_from(["any", "cluster", "stride"]))
    if kind == "cluster":
        start = draw(st.integers(0, size - 1))
        return size, np.arange(start, draw(st.integers(start, size)))
    if kind == "stride":
        return size, np.arange(draw(st.integers(0, size)), size, draw(st.integers(1, size)))
    nnz = draw(st.integers(0, size))
    return size, sample(derive_key(draw(st.integers(0, 99)), "", "test"), nnz, size).numpy()


@given(supports(), st.integers(0, 20))
def test_round_trip_and_length_of_any_support(case, start):
    size, support = case
    k, bits = gaps.encode(support, size)
    packed = np.packbits(np.concatenate([np.ones(start, np.uint8), bits, np.ones(3, np.uint8)]))
    decoded, end = gaps.decode(packed, start, size, len(support), k)
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, support)
    assert end == start + len(bits)
    assert 2**k <= size
    # Two bits more: no code can follow the bound where it is a bit or two.
    assert len(bits) <= 1.25 * bound(size, len(support)) + 2


@pytest.mark.parametrize("density", [1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.8, 0.99])
def test_random_supports_are_close_to_the_entropy(density):
    size = 512 * 512 * 9
    nnz = round(density * size)
    _, bits = gaps.encode(sample(derive_key(0, "", "test"), nnz, size).numpy(), size)
    assert 1 <= len(bits) / bound(size, nnz) < 1.04


def test_clustered_supports_take_less():
    support = np.arange(1000, 2000)
    _, bits = gaps.encode(support, 100_000)
    assert len(bits) < 0.5 * bound(100_000, 1000)


def test_the_code_of_a_small_support():
    # gaps 2, 0, 5 with k = 1: remainders 0 0 1, quotients 1, 0, 2
    k, bits = gaps.encode(np.array([2, 3, 9]), 12)
    assert (k, bits.tolist()) == (1, [0, 0, 1, 0, 1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("packed", "size", "nnz", "k", "message"),
    [
        ([], 10, 1, 0, "too few bits"),
        ([0xFF], 1 << 53, 1 << 52, 0, "too few bits"),
        ([0x00], 10, 2, 0, "fewer than 2"),
        ([0b00011000], 4, 2, 0, "fewer than 2"),  # the second one lies beyond the last position
        ([0b00001000], 5, 1, 0, None),
        ([0b00000100], 5, 1, 0, "fewer than 1"),
        ([0b11010000], 6, 1, 2, "beyond 5"),
        ([0xFF] * 100, 1 << 53, 12, 52, "beyond"),
        ([0xFF] * 8000, (1 << 53) - 1, 1000, 52, "beyond"),  # remainders that add up past 2^62
    ],
)
def test_hostile_codes(packed, size, nnz, k, message):
    packed = np.array(packed, np.uint8)
    if message is None:
        assert gaps.decode(packed, 0, size, nnz, k)[0].tolist() == [4]
        return
    with pytest.raises(ValueError, match=message):
        gaps.decode(packed, 0, size, nnz, k)


@given(st.binary(max_size=40), st.integers(0, 8), st.integers(1, 300), st.data())
def test_random_bits_give_a_support_or_an_error(content, start, size, data):
    nnz = data.draw(st.integers(0, size))
    k = data.draw(st.integers(0, size.bit_length() - 1))
    try:
        support, end = gaps.decode(np.frombuffer(content, np.uint8), start, size, nnz, k)
    except ValueError:
        return
    assert len(support) == nnz and end <= max(start, 8 * len(content))
    assert (np.diff(support) > 0).all()
    assert not nnz or (support[0] >= 0 and support[-1] < size)
