"""How many Python functions one forward call of a layer runs through, and in how many files."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
import torch

import dctps
from dctps.kernels import variant
from dctps.nn import DpSConv2d, DpSLayer, DpSLinear

LAST = torch.channels_last

# Calls before products were paths: all Python functions, torch's own too. Half of them are to be enough.
LINEAR, STRIPS, DEPTHWISE = 79, 83, 90
# What came since then, and is counted apart: looks at the layer's state, and checks of what crosses into C.
GUARDS = ("saved_layer.py", "identified.py", "boundary.py", "compiler/__init__.py", "_jit_internal.py")


def layers() -> dict[str, tuple[DpSLayer, torch.Tensor, int]]:
    images = torch.randn(8, 64, 16, 16).contiguous(memory_format=LAST)
    made = {
        "rows": (DpSLinear(512, 512, density=0.01), torch.randn(64, 512), LINEAR),
        "strips": (DpSConv2d(64, 64, 3, padding=1, density=0.001), images, STRIPS),
        "depthwise": (DpSConv2d(64, 64, 3, padding=1, groups=64, density=0.1), images, DEPTHWISE),
    }
    for name, (layer, _, _) in made.items():
        layer.backend = name  # type: ignore[assignment]
    return made


def called(layer: DpSLayer, x: torch.Tensor) -> list[tuple[str, str]]:
    """(file, function) of each Python function that the third forward call runs through."""
    seen: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.append((frame.f_code.co_filename, frame.f_code.co_name))

    x.requires_grad_()
    layer(x)
    layer(x)
    sys.setprofile(note)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.skipif(variant() == "off", reason="the native kernels were not compiled")
@pytest.mark.parametrize("name", ["rows", "strips", "depthwise"])
def test_a_forward_call_is_short(name: str) -> None:
    layer, x, before = layers()[name]
    calls = called(layer, x)
    calls = [(file, function) for file, function in calls if not file.endswith(GUARDS)]
    folder = dctps.__file__.removesuffix("__init__.py")
    files = {file for file, _ in calls if file.startswith(folder)}
    assert len(calls) <= before / 2, "\n".join(f"{file} {function}" for file, function in calls)
    assert len(files) <= (10 if name == "depthwise" else 9), files
