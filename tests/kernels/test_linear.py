import pytest
import scipy.fft
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dctps.kernels.linear
from dctps.kernels import NativeOffset, has_plan, linear_backward, linear_forward, runnable_variants
from tests.support.drawn import Drawn

OFFSETS = ["zero", "dct", "sdct", "hadamard"]
EVERYTHING = (True, True, True, True)

pytestmark = pytest.mark.skipif(not runnable_variants(), reason="no compiled kernels")


@pytest.fixture(params=runnable_variants())
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dctps.kernels.linear, "variant", lambda: request.param)
    return request.param


@pytest.fixture
def threads():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def agree(got: torch.Tensor | None, expected: torch.Tensor, scale: torch.Tensor) -> None:
    assert got is not None and got.dtype == torch.float32 and got.shape == expected.shape
    assert bool(((got.double() - expected).abs() <= 1e-5 * scale + 1e-30).all())


@pytest.mark.parametrize("offset", OFFSETS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 200),
    n=st.integers(1, 200),
    batch=st.integers(0, 140),
    fraction=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    needs=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 99),
)
def test_outputs_and_derivatives_are_the_dense_ones(
    variant: str,
    offset: str,
    m: int,
    n: int,
    batch: int,
    fraction: float,
    needs: tuple[bool, ...],
    seed: int,
) -> None:
    if offset in ("dct", "sdct") and not has_plan(max(m, n) if offset == "dct" else n):
        n = m = 128
    drawn = Drawn.draw(offset, m, n, batch, int(fraction * m * n), seed)
    for i, (got, (expected, scale)) in enumerate(zip(drawn.made(needs), drawn.expected(), strict=True)):
        if i and not (needs[i - 1] and (i != 3 or drawn.alpha is not None)):
            assert got is None
        else:
            agree(got, expected, scale)


@pytest.mark.parametrize(
    "q", [1, 2, 3, 5, 7, 8, 31, 49, 62, 77, 243, 250, 512, 840, 961, 1000, 1152, 2304, 4096, 11008]
)
def test_the_transform_is_scipys(variant: str, q: int) -> None:
    assert has_plan(q)
    x = torch.randn(20, q, generator=torch.Generator().manual_seed(q))
    nothing, one = torch.empty(0), torch.ones(1)
    call = (nothing, nothing.long(), one)
    y = linear_forward(x, *call, None, NativeOffset("dct", q), q)
    back = linear_backward(x, x, *call, NativeOffset("dct", q), (True, False, False, False))[0]
    for got, expected in (
        (y, scipy.fft.dct(x.double().numpy(), norm="ortho")),
        (back, scipy.fft.idct(x.double().numpy(), norm="ortho")),
    ):
        agree(got, torch.from_numpy(expected), x.double().norm(dim=1, keepdim=True) / 20)


@pytest.mark.parametrize("batch", range(1, 34))
@pytest.mark.parametrize("offset", OFFSETS)
def test_few_rows_are_the_dense_ones(variant: str, offset: str, batch: int) -> None:
    drawn = Drawn.draw(offset, 133, 72, batch, 9000, seed=batch)
    for got, (expected, scale) in zip(drawn.made(), drawn.expected(), strict=True):
        if got is not None:
            agree(got, expected, scale)


def test_lengths_with_large_primes_have_no_plan() -> None:
    assert not has_plan(67) and not has_plan(2 * 67) and not has_plan(4099)
    assert has_plan(61 * 59) and has_plan(2**20)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    ("m", "n", "batch", "nnz"),
    [(96, 200, 500, 4000), (520, 130, 210, 30000), (700, 600, 9, 125000), (700, 600, 30, 125000)],
)
def test_results_do_not_depend_on_the_threads(
    variant: str, threads, offset: str, m: int, n: int, batch: int, nnz: int
) -> None:  # type: ignore[no-untyped-def]
    drawn = Drawn.draw(offset, m, n, batch, nnz)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(drawn.made())
    for other in results[1:]:
        assert all(a is b or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [[85, 3], [0, 40 * 48], [-1, 4], [47, 95, 46], [2**62, 2**62]])
def test_a_support_that_is_none_is_refused(variant: str, bad: list[int]) -> None:
    drawn = Drawn.draw("dct", 48, 40, 33, len(bad))
    drawn.support = torch.tensor(bad)
    with pytest.raises(ValueError, match="the support is not sorted positions in 0..1919"):
        drawn.made()


def test_rows_may_be_strided(variant: str) -> None:
    drawn = Drawn.draw("dct", 48, 40, 33, 200)
    expected = drawn.made()
    for layout in (lambda t: torch.cat([t, t], 1)[:, : t.shape[1]], lambda t: t.T.contiguous().T):
        drawn.x, drawn.g = layout(drawn.x), layout(drawn.g)
        for got, want in zip(drawn.made(), expected, strict=True):
            assert torch.equal(got, want)


def test_rows_do_not_mix(variant: str) -> None:
    """A row of nan or inf stays alone, also in a tile that is not full."""
    drawn = Drawn.draw("sdct", 30, 64, 19, 100)
    clean = drawn.made()[:2]
    drawn.x[3], drawn.g[3] = torch.inf, torch.nan
    others = torch.arange(19) != 3
    for got, want in zip(drawn.made()[:2], clean, strict=True):
        assert torch.equal(got[others], want[others]) and not got[3].isfinite().any()
