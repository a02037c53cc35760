"""W from short vectors: what it is, how many operations make it, and when the rule takes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.drawn_weights import in_double, parts, weights
from torch.utils._python_dispatch import TorchDispatchMode

from dctps import gpu
from dctps.offsets import build_offset
from dctps.product.geometry import ROWS, conv_geometry
from dctps.product.path import Call
from dctps.product.paths.factors import FACTORS, make_offset, make_weight
from dctps.product.rule import decide, estimates

LAST = torch.channels_last


@given(weights(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.booleans())
def test_the_weight_is_that_of_float64(weight, dtype, last) -> None:
    shape = weight.offset.shape
    x = torch.empty(1, 2, 2, 2, dtype=dtype) if len(shape) == 4 else torch.empty(1, 2, dtype=dtype)
    x = x.contiguous(memory_format=LAST) if last and len(shape) == 4 else x
    exact, d = in_double(weight), make_offset(weight, x)
    made = make_weight(weight, d, x)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8}[dtype]
    assert made.dtype == dtype and (made - exact).abs().max() <= tolerance * (1 + exact.abs().max())
    assert made.is_contiguous(memory_format=LAST if last and len(shape) == 4 else torch.contiguous_format)

    if weight.alpha is None:
        assert d is None
    else:
        dense = weight.offset.to_dense(dtype=torch.float64)
        assert d.shape == shape and (d - dense).abs().max() <= 1e-6


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would launch: views, empty tensors and dense products are none."""

    PRODUCTS = ("mm", "convolution", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name.removeprefix("aten::")
        views = any(
            returned.alias_info and not returned.alias_info.is_write for returned in function._schema.returns
        )
        if not views and name != "_unsafe_view" and "empty" not in name and name not in self.PRODUCTS:
            self.seen[name] += 1
        return function(*arguments, **(keywords or {}))


LAYERS = [
    ((64, 64), 1),
    ((96, 40), 1),
    ((128, 32), 1),  # sdct: four rounds, each with signs of its own
    ((512, 12, 3, 3), 1),
    ((24, 64, 3, 3), 1),
    ((256, 64, 1, 1), 1),
    ((64, 3, 3, 3), 1),
    ((18, 1, 3, 3), 18),
]


@pytest.mark.parametrize("name", ["dct", "sdct", "hadamard", "zero"])
@pytest.mark.parametrize(("shape", "groups"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_many_operations_make_a_weight(name, shape, groups, dtype) -> None:
    weight, geometry = parts(name, shape, groups), ROWS
    x = torch.randn(2, shape[1], dtype=dtype)
    if len(shape) == 4:
        geometry = conv_geometry(shape, (1, 1), (1, 1), (1, 1), groups)
        x = torch.randn(2, shape[1] * groups, 4, 4, dtype=dtype).contiguous(memory_format=LAST)
    y = FACTORS.forward(x, weight, geometry, None, None)  # the tables are made
    # Where the last round of signs is not whole, each output's are looked up.
    looked_up = (
        name == "sdct"
        and shape[0] // groups > weight.offset.in_features
        and shape[0] % weight.offset.in_features
    )
    with Launches() as forward:
        FACTORS.forward(x, weight, geometry, None, None)
    with Launches() as backward:
        FACTORS.backward(y, x, weight, geometry, None, (True, True, weight.alpha is not None, False))
    assert 2 <= forward.seen.total() <= 7 + bool(looked_up), forward.seen
    assert 3 <= backward.seen.total() <= 14, backward.seen


def call(dtype=torch.float32, m=1024, n=1024, nnz=1000, **changed) -> Call:
    offset = build_offset("dct", (m, n))
    one = Call(offset, ROWS, (256, n), True, False, dtype, "cuda", nnz, False, True, 1, "off")
    return replace(one, **changed)


def test_the_rule_on_cuda() -> None:
    assert decide(call(torch.bfloat16), "auto").name == "factors"
    assert decide(call(), "auto").name == "transform"
    assert decide(call(tf32=True), "auto").name == "factors"
    assert decide(call(m=512), "auto").name == "factors"
    assert decide(call(nnz=50_000), "auto").name == "factors"
    assert decide(call(ordinary=False, m=512), "auto").name == "dense"
    assert decide(call(), "dense").name == "factors"
    assert decide(call(torch.bfloat16), "transform").name == "transform"
    with pytest.raises(ValueError, match="no native kernel"):
        decide(call(), "native")
    gaussian = replace(call(), offset=build_offset("gaussian", (1024, 1024)))
    assert list(estimates(gaussian, "auto")) == ["dense"]
    with pytest.raises(ValueError, match="offset 'gaussian' has no factors"):
        decide(gaussian, "factors")


def test_wide_and_very_sparse_layers_take_tiles_on_new_gpus(monkeypatch) -> None:
    def half(n: int, nnz: int, **changed) -> str:
        return decide(call(torch.bfloat16, n, n, nnz, **changed), "auto").name

    assert half(4096, 16_777) == "factors"  # there is no GPU
    with pytest.raises(ValueError, match="compute capability 9.0"):
        decide(call(torch.bfloat16), "tiles")
    monkeypatch.setattr(gpu, "multiplies_tiles", lambda device, dtype: dtype == torch.bfloat16)
    assert half(4096, 16_777) == half(8192, 300_000) == half(2048, 8000) == "tiles"
    assert half(4096, 100_000) == half(2048, 16_000) == half(1024, 1000) == half(4099, 16_000) == "factors"
    assert half(2048, 8000, shape=(100, 2048)) == "factors"  # few rows
    assert half(4096, 16_777, shape=(100, 4096)) == "tiles"
    assert decide(call(m=4096, n=4096, nnz=16_777), "auto").name == "transform"  # float32


def test_the_cpu_takes_factors_only_by_name() -> None:
    on_cpu = replace(call(), device="cpu")
    assert "factors" not in estimates(on_cpu, "auto") and decide(on_cpu, "factors") is FACTORS
