"""Triton's kernels without a GPU: their numbers by its interpreter, their machine code by its compiler."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dctps.gpu import Entries, launch, rows
from dctps.offsets import build_offset

triton = pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Bytes of shared memory that a block may take.
TARGETS = {80: 163 * 1024, 90: 227 * 1024}


def test_the_kernels_numbers() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(
        [*command, str(HERE / "interpreted.py")], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def entries_of(name: str, shape: tuple[int, ...]) -> Entries:
    offset = build_offset(name, shape, seed=3, layer="layer")
    factors = offset.factors(dtype=torch.float32, device=torch.device("cpu"))
    left, right = factors.left.squeeze(2), factors.right.squeeze(1)
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    return Entries(offset.shape, left, right, *factors[2:])


# Every tile and every kind of table; the layouts of W and the dtypes are crossed with these below.
LAYERS = [
    ("dct", (64, 64)), ("dct", (4096, 4096)), ("dct", (512, 256, 3, 3)),
    ("sdct", (512, 512)), ("sdct", (8192, 2048)), ("sdct", (300, 128)), ("sdct", (512, 512, 3, 3)),
    ("sdct", (64, 3, 3, 3)), ("hadamard", (1024, 1024)), ("hadamard", (512, 256, 3, 3)),
]  # fmt: skip


def calls(name: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool):
    """The arguments of every kernel for a layer."""
    w = torch.empty(shape, dtype=dtype)
    w = w.contiguous(memory_format=torch.channels_last) if last else w
    values, support = torch.zeros(100), torch.zeros(100, dtype=torch.int64)
    alpha, entries = torch.ones(1), entries_of(name, shape)
    parts = torch.zeros(10, dtype=torch.float64)
    yield "make_weight", launch.weight_arguments(w, entries, alpha)[1]
    yield "put_values", launch.value_arguments(w, entries, alpha, values, support)[1]
    yield "gradients", launch.gradient_arguments(w, entries, values, parts, support)[1]
    numbers = {"grad_alpha": alpha, "parts": parts, "count": 10, "BLOCK": 256}
    yield "add_parts", numbers


TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8",
}  # fmt: skip


def compiled(kernel: str, arguments: dict[str, object], capability: int):
    """What Triton makes of a kernel, told as at a launch what 16 divides: torch's addresses, most sizes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dctps.gpu import kernels, row_kernels

    arguments = dict(arguments)
    warps = arguments.pop("num_warps", 4)
    constants = {name: value for name, value in arguments.items() if name.isupper()}
    others = {name: value for name, value in arguments.items() if name not in constants}
    signature = {
        name: TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        for name, value in others.items()
    } | dict.fromkeys(constants, "constexpr")
    function = getattr(kernels, kernel, None) or getattr(row_kernels, kernel)
    order = function.arg_names
    aligned = {
        (order.index(name),): [["tt.divisibility", 16]]
        for name, value in others.items()
        if isinstance(value, torch.Tensor) or value % 16 == 0
    }
    source = ASTSource(
        function,
        {name: signature[name] for name in order},
        {(order.index(name),): value for name, value in constants.items()},
        aligned,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and shared memory, by the program that NVIDIA ships."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    said = subprocess.run(
        [program, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}


@pytest.mark.parametrize("capability", TARGETS)
def test_no_configuration_spills(capability: int, tmp_path: Path) -> None:
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("the interpreter has no machine code")
    seen = set()
    for name, shape in LAYERS:
        for dtype, last in ((torch.bfloat16, True), (torch.float32, False)):
            for kernel, arguments in calls(name, shape, dtype, last and len(shape) == 4):
                kinds = tuple(
                    (key, value if key.isupper() else getattr(value, "dtype", "int"))
                    for key, value in arguments.items()
                )
                if (kernel, kinds) in seen:
                    continue
                seen.add((kernel, kinds))
                made = compiled(kernel, arguments, capability)
                used = resources(made.asm["cubin"], tmp_path)
                what = f"{kernel} of {name} {shape}, {dtype}: {used}"
                assert used["STACK"] == 0 and used["LOCAL"] == 0, what
                assert used["REG"] <= 168, what  # three blocks at a time on a multiprocessor
                assert made.metadata.shared <= TARGETS[capability], what
    assert {kernel for kernel, _ in seen} == {"make_weight", "put_values", "gradients", "add_parts"}


# What the rule can name, and what a user can: lengths up to 128 x 128, whole tiles and others.
ON_ROWS = [
    ("dct", (2048, 2048)), ("dct", (4096, 4096)), ("dct", (8192, 8192)), ("dct", (3072, 4096)),
    ("dct", (2048, 8192)), ("sdct", (2048, 2048)), ("sdct", (8192, 4096)), ("sdct", (4608, 4608)),
    ("sdct", (2048, 8192)), ("hadamard", (2048, 4096)), ("hadamard", (8192, 8192)),
]  # fmt: skip


def calls_on_rows(name: str, shape: tuple[int, int]):
    """The arguments of every kernel on rows for a layer in bfloat16."""
    m, n = shape
    x, y = torch.zeros(32, n, dtype=torch.bfloat16), torch.zeros(32, m, dtype=torch.bfloat16)
    alpha, parts = torch.ones(1), torch.zeros(64, dtype=torch.float64)
    products = build_offset(name, shape, seed=3, layer="layer").products(torch.device("cpu"))
    values, support = torch.zeros(100), torch.zeros(100, dtype=torch.int64)
    yield "apply_rows", rows.apply_arguments(y, x, y, alpha, alpha, products)[1]
    yield "adjoint_rows", rows.adjoint_arguments(x, y, x, x, alpha, parts, products)[1]
    yield "sparse_rows", rows.sparse_arguments(y, alpha, values, support, x.T.contiguous(), shape)[1]
    yield "sparse_gradient", rows.gradient_arguments(values, support, y.T, x.T, n)[1]


@pytest.mark.parametrize(("name", "shape"), ON_ROWS)
def test_rows_fit_a_multiprocessor_and_take_its_tensor_cores(name, shape, tmp_path) -> None:
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("the interpreter has no machine code")
    for kernel, arguments in calls_on_rows(name, shape):
        made = compiled(kernel, arguments, 90)
        used = resources(made.asm["cubin"], tmp_path)
        what = f"{kernel} of {name} {shape}: {used}"
        assert used["STACK"] == 0 and used["LOCAL"] == 0, what
        assert made.metadata.shared <= TARGETS[90], what
        if kernel in ("apply_rows", "adjoint_rows"):
            assert "wgmma" in made.asm["ptx"], what


def test_every_tile_is_taken_by_some_layer() -> None:
    tiles = {entries_of(name, shape).tile for name, shape in LAYERS}
    assert tiles == set(launch.TILES) and all(math.prod(tile) == 1024 for tile in tiles)


def test_the_gpus_script_runs_whole_from_the_source_tree_without_other_packages(tmp_path: Path) -> None:
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['tyro', 'tqdm', 'safetensors', 'matplotlib']));"
        "runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {name: value for name, value in environment.items() if name != "DCTPS_DATA"}
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", program, "--tiny", "--json", str(found)], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = json.loads(found.read_text())["parts"]
    assert list(parts) == ["device", "correct", "weights", "linear", "networks", "training"]
    assert {name for name, part in parts.items() if isinstance(part["found"], str)} == set(), parts
    assert len(parts["correct"]["found"]) == 20 and parts["device"]["found"]["triton"] is True
    assert all(row["test_accuracy"] is None for row in parts["training"]["found"])  # of noise


def test_triton_is_imported_for_a_gpu_alone() -> None:
    program = (
        "import sys, torch, dctps; model = dctps.sparsify_(torch.nn.Sequential(torch.nn.Linear(8, 8)), 0.5);"
        "model(torch.randn(2, 8)).sum().backward(); assert 'triton' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
