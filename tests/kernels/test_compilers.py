"""Kernels as other compilers make them, for this machine and for aarch64 in an emulator, against float64."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dctps import project_, sparsify_
from dctps.kernels import depthwise_backward, depthwise_forward, runnable_variants
from dctps.kernels.build import compile_library
from dctps.kernels.norm import RELU6, norm_backward, norm_forward, norm_statistics
from dctps.stacks import Stack
from tests.support.drawn import Drawn
from tests.support.drawn_conv import CASES, DEPTHWISE, DrawnConv, drawn_depthwise
from tests.support.driven import DRIVER, MODULES, Driven

# What runs its programs, and how far it optimises here: most of the time goes into compiling.
COMPILERS = {
    "aarch64-linux-gnu-gcc": (("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"), "-O1"),
    "clang": ((), "-O0"),
}
pytestmark = pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")

# What it is, as made, exact, and the size of what was added up.
Result = tuple[str, Tensor, Tensor, Tensor | float]


def linear() -> Iterator[Result]:
    shapes = [(1, 1, 1, 1), (17, 33, 40, 90), (62, 30, 9, 1800), (96, 50, 4, 0), (30, 77, 21, 5)]
    for offset, shape in product(("zero", "dct", "sdct", "hadamard"), shapes):
        drawn = Drawn.draw(offset, *shape)
        for made, (exact, scale) in zip(drawn.made(), drawn.expected(), strict=True):
            if made is not None:
                yield f"linear, {offset}, {shape}", made, exact, scale


def convolutions() -> Iterator[Result]:
    for case in range(len(CASES)):
        drawn = DrawnConv.draw(case, last=case % 2 == 1)
        for made, exact in zip(drawn.made(cache=3_000), drawn.expected(), strict=True):
            yield f"convolution {CASES[case]}", made, exact, 1 + exact.abs().max() if exact.numel() else 1.0


def depthwise() -> Iterator[Result]:
    for case in DEPTHWISE:
        window, x, g, weight, bias = drawn_depthwise(*case)
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        rest = window.stride, window.padding, window.dilation, window.groups
        exact = F.conv2d(*leaves, bias.double(), *rest)
        backward = depthwise_backward(g, x, weight, window, needs_x=True, needs_weight=True)
        found = depthwise_forward(x, weight, window, bias), *backward
        wanted = exact.detach(), *torch.autograd.grad(exact, leaves, g.double())
        for made, exact in zip(found, wanted, strict=True):
            yield f"depthwise {case}", made, exact, 1 + exact.abs().max()


def norms() -> Iterator[Result]:
    shapes = (2, 3, 3, 2), (3, 16, 5, 7), (33, 17, 3, 4), (20, 40, 1, 1)
    for shape, order in product(shapes, (torch.channels_last, torch.contiguous_format)):
        generator = torch.Generator().manual_seed(shape[0])
        x, g, residual = (
            torch.randn(shape, generator=generator).contiguous(memory_format=order) for _ in range(3)
        )
        weight, bias = torch.rand(2, shape[1], generator=generator)
        leaves = [t.double().requires_grad_() for t in (x, weight, bias, residual)]
        before = F.batch_norm(leaves[0], None, None, *leaves[1:3], training=True) + leaves[3]
        for bound in (0, 6):  # where rounding decides on which side y is
            g[(before.detach() - bound).abs() < 1e-4] = 0
        wanted = F.relu6(before).detach(), *torch.autograd.grad(F.relu6(before), leaves, g.double())
        rest = {"training": True, "momentum": 0.1, "epsilon": 1e-5}
        table = norm_statistics(x, weight, bias, (None, None), **rest)
        y = norm_forward(x, table, RELU6, residual)
        found = y, *norm_backward(g, x, table, RELU6, y, training=True, needs=4 * (True,))
        for made, exact in zip(found, wanted, strict=True):
            yield f"norm {shape}", made, exact, 1 + exact.abs().max()


def stacks() -> Iterator[Result]:
    for m, density in ((1, 0.9), (7, 0.02), (9, 0.2)):
        torch.manual_seed(m)
        first = nn.Conv2d(2, m, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(m, 3, 2), nn.ReLU()
        plain = nn.Sequential(*first, nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
        sparse = [sparsify_(copy.deepcopy(plain), density, offset=o) for o in ("zero", "dct", "sdct")]
        models = [*sparse, project_(copy.deepcopy(plain), 2), plain]
        x, labels = torch.randn(70, 2, 9, 9), torch.randint(3, (70,))
        stack = Stack(models)
        assert stack._native(x) is not None
        losses = stack.step(x, labels).loss
        for model, loss in zip(models, losses, strict=True):
            twin = copy.deepcopy(model).double()
            exact = F.cross_entropy(twin(x.double()), labels, reduction="sum")
            yield f"stack of {m}", loss, exact.detach(), 70.0
            trained = [(p.grad, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
            trained = [(grad, q) for grad, q in trained if grad is not None and grad.numel()]
            gradients = torch.autograd.grad(exact / 70, [q for _, q in trained])
            scale = 0.1 + max(float(t.abs().max()) for t in gradients)
            for (grad, _), gradient in zip(trained, gradients, strict=True):
                yield f"stack of {m}", grad.clone(), gradient, scale


def driver(compiler: str, folder: Path) -> list[str | Path]:
    """The command that runs the kernels as the compiler makes them; without a warning."""
    emulator, level = COMPILERS[compiler]
    for program in (compiler, *emulator[:1]):
        if not shutil.which(program):
            pytest.skip(f"there is no {program}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", compiler)
        library = compile_library(folder / "libdctps.so", flags=("-Werror", level))
    program = folder / "driver"
    subprocess.run([compiler, level, DRIVER, "-o", program, "-pthread", "-ldl"], check=True)
    return [*emulator, program, library]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_kernels_are_the_float64_twins_on_one_thread_and_two(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = "generic" if COMPILERS[compiler][0] else runnable_variants()[-1]
    driven = Driven(driver(compiler, tmp_path), variant)
    driven.take_over(monkeypatch)
    for module in MODULES:
        if hasattr(module, "threads_for"):
            monkeypatch.setattr(module, "threads_for", lambda *_: torch.get_num_threads())
    before = torch.get_num_threads()
    try:
        for kernel in (linear, convolutions, depthwise, norms, stacks):
            torch.set_num_threads(1)
            results, calls = list(kernel()), driven.calls
            torch.set_num_threads(2)
            for (what, made, exact, scale), (_, other, *_) in zip(results, kernel(), strict=True):
                assert made.shape == exact.shape and torch.equal(made, other), what
                assert bool(((made.double() - exact).abs() <= 1e-5 * scale + 1e-30).all()), what
            assert driven.calls > calls > 0
    finally:
        torch.set_num_threads(before)
        status = driven.close()
    assert status == 0
