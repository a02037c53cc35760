import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dctps.sparse import random_support, sddmm, sddmm_ref, spmm, spmm_ref


def case(
    m: int, n: int, nnz: int, batch: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(m * 1000 + n)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return random_support(m * n, nnz), draw(nnz), draw(batch, n), draw(batch, m)


@given(
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    fraction=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    batch=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_products_are_the_dense_ones(m: int, n: int, fraction: float, batch: int, dtype: torch.dtype) -> None:
    support, values, x, g = case(m, n, int(fraction * m * n), batch, dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for got, expected in (
        (spmm(values, support, x, (m, n)), spmm_ref(values, support, x, (m, n))),
        (
            spmm(values, support, g, (m, n), transposed=True),
            spmm_ref(values, support, g, (m, n), transposed=True),
        ),
        (sddmm(g, x, support, (m, n)), sddmm_ref(g, x, support, (m, n))),
    ):
        assert got.dtype == dtype and got.shape == expected.shape
        assert torch.allclose(got.double(), expected, **tolerance)


@pytest.mark.parametrize(
    ("m", "n", "nnz", "batch"), [(5, 4, 7, 3), (3, 6, 18, 2), (1, 1, 1, 1), (4, 2, 1, 2)]
)
def test_derivatives_of_every_order(m: int, n: int, nnz: int, batch: int) -> None:
    support, values, x, g = case(m, n, nnz, batch)
    functions = (
        (lambda v, x: spmm(v, support, x, (m, n)), (values, x)),
        (lambda v, g: spmm(v, support, g, (m, n), transposed=True), (values, g)),
        (lambda g, x: sddmm(g, x, support, (m, n)), (g, x)),
    )
    for function, inputs in functions:
        inputs = tuple(t.requires_grad_() for t in inputs)
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_batching_and_function_transforms() -> None:
    m, n = 5, 4
    support, values, x, _ = case(m, n, 7, 3)

    def product(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return spmm(v, support, x, (m, n))

    many_x, many_v = torch.stack([x, 2 * x, -x]), torch.stack([values, values**2, 0 * values])
    by_x = torch.vmap(product, (None, 0))(values, many_x)
    assert torch.allclose(by_x, torch.stack([product(values, x) for x in many_x]))
    by_both = torch.vmap(product)(many_v, many_x)
    assert torch.allclose(by_both, torch.stack([product(v, x) for v, x in zip(many_v, many_x, strict=True)]))
    forward, reverse = torch.func.jacfwd(product)(values, x), torch.func.jacrev(product)(values, x)
    assert torch.allclose(forward, reverse)


def test_a_compiler_sees_shapes_without_running() -> None:
    with torch._subclasses.FakeTensorMode():
        support, values = torch.zeros(3, dtype=torch.int64), torch.zeros(3)
        y = spmm(values, support, torch.zeros(2, 5), (4, 5))
        assert y.shape == (2, 4)
        assert sddmm(y, torch.zeros(2, 5), support, (4, 5)).shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_products() -> None:
    support, values, x, g = (t.cuda() for t in case(30, 40, 100, 6, torch.float32))
    shape = (30, 40)
    cpu = support.cpu(), values.cpu(), x.cpu(), g.cpu()
    assert torch.allclose(
        spmm(values, support, x, shape).cpu(), spmm(cpu[1], cpu[0], cpu[2], shape), atol=1e-4
    )
    assert torch.allclose(sddmm(g, x, support, shape).cpu(), sddmm(cpu[3], cpu[2], cpu[0], shape), atol=1e-4)
