"""The C code under the address and undefined-behaviour sanitizers, in a process of its own."""

import ctypes.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dctps.kernels import runnable_variants
from dctps.kernels.build import CompileError, compile_library

PROGRAM = """
    import pathlib, sys
    import torch
    import dctps.kernels.conv, dctps.kernels.depthwise, dctps.kernels.linear, dctps.kernels.loader as loader
    import dctps.kernels.norm, dctps.kernels.weight
    loader.LIBRARY = pathlib.Path(sys.argv[1])
    from dctps.kernels.linear import linear_backward, linear_forward
    from dctps.kernels.norm import RELU6, norm_backward, norm_forward, norm_statistics
    from tests.support.drawn import Drawn
    from tests.support.drawn_conv import CASES, DEPTHWISE as depthwise, DrawnConv, drawn_depthwise
    torch.set_num_threads(2)
    shapes = [(1, 1, 1, 1), (2, 3, 5, 4), (17, 33, 40, 90), (40, 130, 70, 5200), (130, 40, 17, 333),
              (96, 62, 100, 0), (200, 200, 300, 12000), (7, 49, 16, 20), (300, 60, 33, 900),
              (90, 110, 9, 9800), (33, 64, 4, 70), (20, 30, 32, 300)]
    norms = [(1, 1, 1, 2), (2, 3, 1, 1), (3, 16, 5, 7), (33, 17, 3, 4), (2, 300, 5, 1), (40, 33, 9, 9)]
    for variant in loader.runnable_variants():
        for module in (dctps.kernels.conv, dctps.kernels.depthwise, dctps.kernels.weight):
            module.function = lambda name: loader.function(name, variant)
        for case in range(len(CASES)):
            for last in (False, True):
                for cache in (3_000, 260_000):
                    d = DrawnConv.draw(case, last)
                    d.made(cache)
                    parts = d.values, d.support, d.alpha, d.offset.filters(), d.window
                    dctps.kernels.conv.conv_forward(d.x.bfloat16(), *parts, cache=cache)
                    needs = True, True, d.alpha is not None
                    x, g = d.x.bfloat16(), d.g.bfloat16()
                    dctps.kernels.conv.conv_backward(g, x, *parts, needs, cache=cache)
        for case in depthwise:
            window, x, g, weight, bias = drawn_depthwise(*case)
            dctps.kernels.depthwise.depthwise_forward(x, weight, window, bias)
            for needs in ((True, True), (False, True), (True, False)):
                rest = {"needs_x": needs[0], "needs_weight": needs[1]}
                dctps.kernels.depthwise.depthwise_backward(g, x, weight, window, **rest)
        dctps.kernels.norm.function = lambda name: loader.function(name, variant)
        for shape in norms:
            for order in (torch.channels_last, torch.contiguous_format):
                x, g, residual = (torch.randn(shape).contiguous(memory_format=order) for _ in range(3))
                own, rest = torch.rand(4, shape[1]), {"momentum": 0.1, "epsilon": 1e-5}
                for training in (True, False):
                    table = norm_statistics(x, *own[:2], tuple(own[2:]), training=training, **rest)
                    y = norm_forward(x, table, RELU6, residual)
                    norm_forward(x, table)
                    for needs in ((1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)):
                        needs = tuple(map(bool, needs))
                        norm_backward(g, x, table, RELU6, y, training=training, needs=needs)
                        norm_backward(g, x, table, training=training, needs=needs)
        dctps.kernels.linear.variant = lambda: variant
        for offset in ("zero", "dct", "sdct", "hadamard"):
            for m, n, batch, nnz in shapes:
                d = Drawn.draw(offset, m, n, batch, nnz)
                for dtype in (torch.float32, torch.bfloat16):
                    x, g = d.x.to(dtype), d.g.to(dtype)
                    linear_forward(x, d.values, d.support, d.alpha, d.bias, d.form, m)
                    for needs in ((1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 0)):
                        linear_backward(g, x, d.values, d.support, d.alpha, d.form, tuple(map(bool, needs)))
    import dctps.kernels.stack
    from torch import nn
    from dctps import project_, sparsify_
    from dctps.stacks import Stack
    for variant in loader.runnable_variants():
        dctps.kernels.stack.function = lambda name: loader.function(name, variant)
        for m, density in ((1, 0.9), (7, 0.02), (9, 0.2)):
            def build(m=m):
                first = nn.Conv2d(2, m, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(m, 3, 2), nn.ReLU()
                last = nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)
                return nn.Sequential(*first, nn.Flatten(), *last)
            networks = [sparsify_(build(), density, offset=offset) for offset in ("zero", "dct", "sdct")]
            stack = Stack([*networks, build(), project_(build(), 2)])
            x, y = torch.randn(70, 2, 9, 9), torch.randint(3, (70,))
            assert stack._native(x) is not None
            stack.step(x, y)
            stack.evaluate([(x, y), (x[:1], y[:1])])
    print("clean")
"""


def sanitizer() -> str | None:
    """libasan of the compiler that builds the kernels, which must be loaded before Python."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    found = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    )
    return (
        found.stdout.strip() if Path(found.stdout.strip()).is_absolute() else ctypes.util.find_library("asan")
    )


HOSTILE = """
    import pathlib, sys
    import torch
    import dctps.kernels.loader as loader
    loader.LIBRARY = pathlib.Path(sys.argv[1])
    from tests.support.hostile import ENTRIES, REFUSED, bad_calls
    torch.set_num_threads(2)
    for entry in ENTRIES:
        for (call, arguments), what in bad_calls(entry, 2000):
            try:
                call(**arguments)
            except REFUSED:
                continue
            sys.exit(f"{entry} took {what} = {arguments[what]}")
    print("clean")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels under the address and undefined-behaviour sanitizers."""
    if not runnable_variants() or not sanitizer():
        pytest.skip("no compiler with sanitizers")
    flags = (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-g1",
        "-O0",
        "-DINLINE=static inline",
    )
    try:
        return compile_library(tmp_path_factory.mktemp("kernels") / "sanitized.so", flags=flags)
    except CompileError as error:
        pytest.skip(f"no sanitizers: {error}")


@pytest.mark.parametrize("program", [PROGRAM, HOSTILE], ids=["right calls", "wrong calls"])
def test_no_stray_access_and_no_undefined_behaviour(library: Path, program: str) -> None:
    """Of 2,000 drawn wrong calls of every entry each is refused besides."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(library)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "LD_PRELOAD": str(sanitizer()),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        },
    )
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-4000:]
