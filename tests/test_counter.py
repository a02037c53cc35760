import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps import counter
from tests.support import oracles

SEEDS = st.integers(-(2**70), 2**70)
NAMES = st.text(max_size=12)

GOLDEN_KEY = 15012999052905128049
GOLDEN_BITS = [9210361126631421222, 7130013859105327005]
GOLDEN_SAMPLE = [946, 1011, 1033, 1102, 1579, 1750, 2103, 2213]
GOLDEN_PERMUTATION = [7, 2, 1, 0, 3, 6, 5, 4]
GOLDEN_NORMALS = [-0.001767983135917714, -0.2884038100402909, -1.1155343258791448]


def unsigned(draws: torch.Tensor) -> list[int]:
    return [int(d) % 2**64 for d in draws]


def test_bits_are_splitmix64() -> None:
    # The first outputs of the published reference implementation from the state 1234567.
    assert unsigned(counter.bits(1234567, torch.arange(5))) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_golden_values() -> None:
    """Frozen: seeds in users' files mean these."""
    key = counter.derive_key(0, "features.0", "support")
    assert key == GOLDEN_KEY
    assert unsigned(counter.bits(key, torch.arange(2))) == GOLDEN_BITS
    assert counter.sample(key, 8, 2400).tolist() == GOLDEN_SAMPLE
    assert counter.permutation(key, 8).tolist() == GOLDEN_PERMUTATION
    normals = counter.normal(key, torch.arange(3))
    assert torch.allclose(normals, torch.tensor(GOLDEN_NORMALS, dtype=torch.float64), rtol=0, atol=1e-12)


@given(seed=SEEDS, name=NAMES, k=st.integers(0, 60), n=st.integers(1, 60))
def test_draws_equal_the_definition(seed: int, name: str, k: int, n: int) -> None:
    text, key = f"{seed}/{name}/p", counter.derive_key(seed, name, "p")
    assert key == oracles.key(text)
    index = torch.arange(n)
    assert unsigned(counter.bits(key, index)) == [oracles.bits(key, i) for i in range(n)]
    assert counter.uniform(key, index).tolist() == [oracles.uniform(text, i) for i in range(n)]
    expected = torch.tensor([oracles.normal(text, i) for i in range(n)], dtype=torch.float64)
    assert torch.allclose(counter.normal(key, index), expected, rtol=0, atol=1e-9)
    assert counter.signs(key, n).tolist() == oracles.signs(text, n)
    assert counter.permutation(key, n).tolist() == oracles.permutation(text, n)
    if k <= n:
        assert counter.sample(key, k, n).tolist() == oracles.sample(text, k, n)


def test_several_permutations_are_consecutive_draws() -> None:
    key = counter.derive_key(1, "", "p")
    several = counter.permutations(key, 3, 10)
    draws = torch.tensor([oracles.bits(key, i) >> 1 for i in range(30)]).reshape(3, 10)
    assert torch.equal(several, draws.argsort(1))


@given(k=st.integers(0, 3000), n=st.integers(1, 3000))
def test_samples_are_sorted_distinct_and_in_range(k: int, n: int) -> None:
    if k > n:
        with pytest.raises(ValueError, match=f"cannot draw {k} of {n}"):
            counter.sample(5, k, n)
        return
    drawn = counter.sample(5, k, n)
    assert len(drawn) == k and drawn.dtype == torch.int64
    assert (drawn[1:] > drawn[:-1]).all()
    assert k == 0 or (drawn[0] >= 0 and drawn[-1] < n)


def test_samples_reach_beyond_31_bits_in_little_memory() -> None:
    n = 10**12
    drawn = counter.sample(3, 1000, n)
    assert len(drawn) == 1000 and int(drawn[-1]) > 2**31
    assert abs(drawn.double().mean() / n - 0.5) < 5 * (1 / 12 / 1000) ** 0.5


def test_samples_are_uniform() -> None:
    """Chi-square of inclusion counts over many keys: 3 of 20 positions, 4,000 draws."""
    hits = torch.zeros(20)
    for seed in range(4000):
        hits[counter.sample(counter.derive_key(seed, "", "chi"), 3, 20)] += 1
    expected = 4000 * 3 / 20
    # Inclusion without replacement has variance p(1-p) a draw; 19 degrees of freedom, 99.99% is 51.
    statistic = ((hits - expected) ** 2).sum() / (expected * 17 / 19)
    assert statistic < 51


def test_streams_of_other_keys_are_uncorrelated() -> None:
    a = counter.normal(counter.derive_key(0, "a", "x"), torch.arange(20_000))
    for other in (("b", "x"), ("a", "y")):
        b = counter.normal(counter.derive_key(0, *other), torch.arange(20_000))
        assert abs((a * b).mean()) < 5 / 20_000**0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_are_the_same() -> None:
    index = torch.arange(1000)
    assert torch.equal(counter.bits(9, index.cuda()).cpu(), counter.bits(9, index))
    assert torch.equal(counter.sample(9, 100, 5000, device="cuda").cpu(), counter.sample(9, 100, 5000))
    assert torch.allclose(counter.normal(9, index.cuda()).cpu(), counter.normal(9, index), atol=1e-6)
