"""The memory that tensors give back, kept by the process instead of the system.

The C library of Linux returns what a large tensor took to the system, which hands it out page by page, each
filled with zeros. A training step takes and gives back all activations of a network, which may be a fifth
of its time on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of `mallopt`, from glibc's malloc.h
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones.

    `dctps train`, `sweep` and `bench` do so. It holds until the process ends, for dense networks too; its
    memory stays at what it was at most. Where the environment already chooses an allocator or its thresholds
    (`LD_PRELOAD`, `GLIBC_TUNABLES`, `MALLOC_..._THRESHOLD_`), and without glibc, nothing changes.

    Returns:
        Whether the process keeps it from now on.

    Reference: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in _OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older versions of glibc take no more than 32 MiB for the first.
    return mallopt is not None and bool(
        (mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25))
        and mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    )
