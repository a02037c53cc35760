"""The DCT-II by itself, at the native kernel's entry."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from dctps.benchmarking.layers import SIZES
from dctps.benchmarking.plan import Cell, Plan
from dctps.benchmarking.timing import Step, measure
from dctps.kernels import NativeOffset, linear_forward, variant
from dctps.transforms import dct


def transform_cells(plan: Plan) -> Iterator[Cell]:
    """The DCT-II of rows beside a real FFT of the same length, a copy, and the installed packages' DCTs."""
    batch = plan.batch or 256
    for n in plan.sizes or SIZES:
        x = torch.randn(batch, n)
        steps: dict[str, Step] = {"torch.fft.rfft": lambda x=x: torch.fft.rfft(x)}  # type: ignore[misc]
        if variant() != "off":
            steps["native"] = _native(x)
        steps["dctps on torch"] = lambda x=x: dct(x)  # type: ignore[misc]
        steps["copy"] = lambda x=x: x.clone()  # type: ignore[misc]
        steps |= _packages(x)
        yield {"n": n, "batch": batch, "candidates": measure(steps, plan.seconds)}


def _native(x: torch.Tensor) -> Step:
    n = x.shape[1]
    values, support, alpha = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.ones(1)
    form = NativeOffset("dct", n)
    return lambda: linear_forward(x, values, support, alpha, None, form, n)


def _packages(x: torch.Tensor) -> dict[str, Step]:
    found: dict[str, Step] = {}
    rows, threads = x.numpy(), torch.get_num_threads()
    if fft := _optional("scipy.fft"):
        found["scipy"] = lambda: fft.dct(rows, norm="ortho")
        found[f"scipy, {threads} workers"] = lambda: fft.dct(rows, norm="ortho", workers=threads)
    if peer := _optional("torch_dct"):
        found["torch-dct"] = lambda: peer.dct(x, norm="ortho")
    return found


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
