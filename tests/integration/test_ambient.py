"""What torch lets a user set for everyone (a default dtype or device, a mode) changes no layer's result.

Every class of layers, under every offset, on every path, is compared with torch's own layer on `to_dense()`
in float64; all tables are made anew in that surrounding, and used again outside of it.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close

import dctps
from dctps import DpSConv1d, DpSConv2d, DpSLinear
from dctps.product.rule import Backend
from dctps.transforms.tables import clear_tables

OFFSETS = ("zero", "dct", "sdct", "hadamard", "gaussian")
BACKENDS: tuple[Backend, ...] = ("auto", "dense", "transform", "native")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def set_default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "meta for all": set_default_device,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
}

# kind: constructor's arguments, shape of x
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (DpSLinear, (24, 40), {}, (70, 24)),
    "few rows": (DpSLinear, (24, 40), {}, (3, 24)),
    "conv1d": (DpSConv1d, (6, 20, 3), {"padding": 1, "stride": 2}, (3, 6, 15)),
    "conv2d": (DpSConv2d, (6, 20, 3), {"padding": 1}, (3, 6, 9, 8)),
    "1 x 1": (DpSConv2d, (12, 20, 1), {}, (3, 12, 6, 5)),
    "grouped": (DpSConv2d, (6, 20, 3), {"groups": 2, "stride": 2}, (3, 6, 9, 8)),
    "depthwise": (DpSConv2d, (12, 12, 3), {"groups": 12, "padding": 1}, (3, 12, 9, 8)),
}


def torchs(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The product by torch, in float64."""
    bias = layer.bias.double()
    if isinstance(layer, DpSLinear):
        return F.linear(x, weight, bias)
    convolve = F.conv1d if isinstance(layer, DpSConv1d) else F.conv2d
    return convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def made(kind: str, offset: str, backend: Backend) -> tuple[Any, Tensor] | None:
    """A layer of float32, and x; None where the layer has no such path."""
    build, arguments, more, shape = LAYERS[kind]
    layer: Any = build(*arguments, **more, offset=offset, density=0.2)
    layer.backend = backend
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.values.copy_(torch.randn(layer.nnz, generator=generator) / 4)
    x = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    try:
        layer(x)
    except ValueError as error:
        if "backend" not in str(error) and "transform" not in str(error):
            raise
        return None
    return layer, x.requires_grad_(kind != "1 x 1")


def results(layer: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    """y, and where autograd is at work the gradients in x, values and alpha."""
    y = layer(x)
    if torch.is_inference_mode_enabled():
        return [y]
    wanted = [t for t in (x, layer.values, layer.alpha) if t is not None and t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, g.to(y.dtype))]


def expected(layer: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(layer).double()
    x64 = x.detach().double().requires_grad_(x.requires_grad)
    y = torchs(twin, x64, twin.to_dense())
    wanted = [t for t in (x64, twin.values, twin.alpha) if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, g.double())]


def agree(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for found, exact in zip(got, want, strict=False):
        assert found.device.type == "cpu" and found.shape == exact.shape
        scale = float(exact.abs().max()) if exact.numel() else 1.0
        assert_close(found.double(), exact, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_surroundings_change_nothing(kind: str, name: str) -> None:
    tolerance = 0.05 if name == "autocast" else 2e-5
    for offset in OFFSETS:
        for backend in BACKENDS:
            if (case := made(kind, offset, backend)) is None:
                continue
            layer, x = case
            g = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1))
            want = expected(layer, x, g)
            clear_tables()
            layer.offset._held.clear()
            layer.offset._memo.clear()
            with SURROUNDINGS[name]():
                found = results(layer, x, g)
                assert found[0].dtype == (torch.bfloat16 if name == "autocast" else torch.float32)
            agree(found, want, tolerance)
            agree(results(layer, x, g), want, 2e-5)  # by the tables that were made inside


@pytest.mark.parametrize("kind", LAYERS)
def test_two_threads_of_other_surroundings_do_not_meet(kind: str) -> None:
    """A default device and inference mode are a thread's own; tables are everyone's."""
    cases = [case for offset in OFFSETS for backend in BACKENDS if (case := made(kind, offset, backend))]
    gs = [torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1)) for layer, x in cases]
    wants = [expected(*case, g) for case, g in zip(cases, gs, strict=True)]
    clear_tables()
    failures: list[BaseException] = []

    def work(surrounding: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        try:
            for (layer, x), g, want in zip(cases, gs, wants, strict=True):
                with surrounding():
                    found = results(layer, x, g)
                agree(found, want, 2e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(SURROUNDINGS[name],)) for name in ("inference", "meta")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_attention_is_torchs_in_every_surrounding(offset: str, name: str) -> None:
    network = nn.Sequential(nn.MultiheadAttention(24, 3, batch_first=True))
    attention: Any = dctps.sparsify_(network, 0.2, offset=offset)[0]
    dense: Any = dctps.merge_(copy.deepcopy(network))[0].double()
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    want = dense(*[x.double()] * 3)[0].detach()
    clear_tables()
    with SURROUNDINGS[name]():
        y = attention(x, x, x)[0]
    agree([y], [want], 0.05 if name == "autocast" else 2e-5)
    agree([attention(x, x, x)[0]], [want], 2e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_tables_made_under_a_transform_of_functions_serve_after_it(kind: str, offset: str) -> None:
    """They are no wrappers of a level of `torch.func` that is over."""
    for backend in BACKENDS:
        if (case := made(kind, offset, backend)) is None:
            continue
        layer, x = case
        g = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1))
        want = expected(layer, x, g)
        clear_tables()
        layer.offset._held.clear()
        layer.offset._memo.clear()
        layer.backend = "auto"
        forward = partial(torch.func.functional_call, layer)
        torch.func.grad(lambda values: forward({"values": values}, (x,)).sum())(layer.values.detach())
        torch.func.grad(lambda t: layer.to_dense().sum() * t.sum())(torch.ones(2))
        layer.backend = backend
        agree(results(layer, x, g), want, 2e-5)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_stand_ins_pass_and_leave_no_tables_behind(kind: str, warm: bool) -> None:
    """Under a FakeTensorMode, whether or not the real tables are there already."""
    for offset in OFFSETS:
        for backend in ("auto", "dense", "transform"):
            if (case := made(kind, offset, backend)) is None:  # type: ignore[arg-type]
                continue
            layer, x = case
            want = layer(x)
            if not warm:
                clear_tables()
                layer.offset._held.clear()
                layer.offset._memo.clear()
            fake = FakeTensorMode()
            tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            stand_ins = {name: fake.from_tensor(t) for name, t in tensors.items()}
            images = fake.from_tensor(x.detach())
            with fake:
                y = torch.func.functional_call(layer, stand_ins, (images,))
            assert y.shape == want.shape
            agree([layer(x).detach()], [want.detach().double()], 2e-5)
