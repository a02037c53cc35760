"""The kernels of a library in a process of its own: another machine's in an emulator, another compiler's."""

from __future__ import annotations

import ctypes
import gc
import struct
import subprocess
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dctps.kernels.linear
import dctps.kernels.loader
import dctps.kernels.norm
import dctps.kernels.stack

DRIVER = Path(__file__).with_name("driver.c")
MODULES = (
    *(dctps.kernels.conv, dctps.kernels.depthwise, dctps.kernels.linear),
    *(dctps.kernels.norm, dctps.kernels.stack, dctps.kernels.weight),
)  # fmt: skip


class Driven:
    """Stands in for `loader.function`: sends a call's memory to the driver, and brings back what it became.

    Args:
        command: that runs `driver.c` on a library.
        which: the variant of its kernels.
    """

    def __init__(self, command: Sequence[str | Path], which: str = "generic") -> None:
        self.which, self.calls = which, 0
        self.early = _with_memory()
        gc.freeze()  # what is there is not looked through at every call
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> int:
        """Ends the process; its exit status."""
        gc.unfreeze()
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()

    def take_over(self, patch: pytest.MonkeyPatch) -> None:
        """Let all kernels' calls go to the driver."""
        for module in MODULES:
            patch.setattr(module, "function", self.function)
        patch.setattr(dctps.kernels.linear, "variant", lambda: self.which)

    def function(self, name: str, which: str | None = None) -> Callable[[bytes], int]:
        """The entry of that name."""
        return lambda call: self._call(f"dctps_{name}_{which or self.which}", call)

    def _call(self, entry: str, call: bytes) -> int:
        self.calls += 1
        blocks = _reachable(call, self.early + _with_memory())
        sizes = [(0, len(call), 1), *((at, size, holds) for at, (size, holds) in blocks.items())]
        write, read = self.process.stdin.write, self.process.stdout.read
        write(struct.pack("64sQ", entry.encode(), len(sizes)))
        write(struct.pack(f"{3 * len(sizes)}Q", *(word for size in sizes for word in size)) + call)
        for at, (size, _) in blocks.items():
            write(ctypes.string_at(at, size))
        self.process.stdin.flush()
        (failure,) = struct.unpack("q", read(8))
        for at, (size, holds) in blocks.items():
            if not holds:
                ctypes.memmove(at, read(size), size)
        assert failure >= 0, f"the library has no {entry}"
        return int(failure)


def _with_memory() -> list[Tensor | array[int]]:
    """The tensors and arrays that there are."""
    things = gc.get_objects()
    return [thing for thing in things if type(thing) in (torch.Tensor, torch.nn.Parameter, array)]


def _reachable(call: bytes, things: list[Tensor | array[int]]) -> dict[int, tuple[int, bool]]:
    """Of the memory that a call names: where each piece begins, its size, and whether it names more."""
    there: dict[int, tuple[int, bool]] = {}
    for thing in things:
        if isinstance(thing, array):
            at, count = thing.buffer_info()
            there[at] = count * thing.itemsize, True
        elif thing.layout is torch.strided and thing.is_cpu:
            storage = thing.untyped_storage()
            there[storage.data_ptr()] = storage.nbytes(), False
    starts = [0, *sorted(at for at, (size, _) in there.items() if size)]
    found: dict[int, tuple[int, bool]] = {}
    waiting = [call]
    while waiting:
        words = waiting.pop()
        for word in struct.unpack(f"{len(words) // 8}Q", words):
            at = starts[bisect_right(starts, word) - 1]
            if at and at not in found and word - at < there[at][0]:
                found[at] = size, names_more = there[at]
                if names_more:
                    waiting.append(ctypes.string_at(at, size))
    return found
