"""Finds the compiled library, chooses the variant for this processor, and lends it torch's threads."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from dctps.kernels.build import LIBRARY, SUPPORTED, find_compiler, source_hash
from dctps.kernels.layouts import check_layouts

VARIANTS = ("generic", "avx2", "avx512")  # in the order of `dctps_best_variant`
_ACCEPT = "set DCTPS_KERNELS=off to accept it"


@functools.cache
def variant() -> str:
    """The variant in use: `avx512`, `avx2`, `generic`, or `off` where torch operations serve.

    The environment variable DCTPS_KERNELS names one, a ValueError if this processor cannot run it; without it
    the processor decides. A missing library is warned of once.
    """
    named = os.environ.get("DCTPS_KERNELS", "auto")
    if named not in ("auto", "off", *VARIANTS):
        raise ValueError(f"DCTPS_KERNELS={named!r}: choose from auto, off, {', '.join(VARIANTS)}")
    runnable = () if named == "off" else runnable_variants()
    if not runnable:
        return "off"
    if named not in ("auto", *runnable):
        raise ValueError(f"DCTPS_KERNELS={named!r}: this processor runs {', '.join(runnable)}")
    return runnable[-1] if named == "auto" else named


def runnable_variants() -> tuple[str, ...]:
    """The compiled variants that this processor can run, the fastest last."""
    library = _library()
    return VARIANTS[: library.dctps_best_variant() + 1] if library else ()


@functools.cache
def function(name: str, which: str | None = None) -> Callable[[bytes], int]:
    """The exported `dctps_<name>_<variant>`, or of the variant in use: packed arguments -> a `Failure`."""
    found = getattr(_library(), f"dctps_{name}_{which or variant()}")
    found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_int
    return found  # type: ignore[no-any-return]


def scratch_bytes() -> int:
    """Bytes of scratch that the kernels keep for their next call."""
    library = _library() if variant() != "off" else None
    return int(library.dctps_scratch_bytes()) if library else 0


def release_scratch() -> None:
    """Free the scratch; the next call takes it again."""
    if variant() != "off" and (library := _library()):
        library.dctps_release()


def missing() -> str | None:
    """Why torch operations serve, and what to do about it, in one sentence; None where there is a library."""
    found = _opened()
    return found if isinstance(found, str) else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = _opened()
    if isinstance(found, str):
        warnings.warn(f"dctps: {found}", stacklevel=2)
        return None
    return found


def _opened() -> ctypes.CDLL | str:
    machine = platform.machine()
    problem = f"were not compiled for this {machine} machine"
    if LIBRARY.exists():
        try:
            library = ctypes.CDLL(str(LIBRARY))
            library.dctps_made_from.restype = ctypes.c_char_p
            if library.dctps_made_from().decode() == source_hash():
                return _prepared(library)
            problem = "were compiled from other sources than these"
        except (OSError, AttributeError) as error:
            problem = f"cannot be loaded, perhaps made for another machine than this {machine} one ({error})"
    if not SUPPORTED:
        problem = f"are not for {platform.system()} on a {machine} machine"
    install = "" if find_compiler() else "install a C compiler (gcc or clang), and "
    remedy = f"{install}run `python -m dctps.kernels`, or {_ACCEPT}" if SUPPORTED else _ACCEPT
    return f"the native kernels {problem}; slower torch operations serve: {remedy}"


def _prepared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.dctps_layouts.restype = ctypes.c_char_p
    check_layouts(library.dctps_layouts().decode())
    library.dctps_scratch_bytes.restype = ctypes.c_int64
    library.dctps_set_pool.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.dctps_set_pool(*_torch_pool())
    return library


def _torch_pool() -> tuple[int | None, int | None]:
    """The addresses of `GOMP_parallel` and `omp_get_thread_num` in the OpenMP runtime that torch has loaded.

    Looked up among the libraries that libtorch_cpu depends on: a second runtime's threads would spin against
    torch's. Every OpenMP runtime has these entries; None where torch was built without one.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        with suppress(OSError, AttributeError):
            torch_cpu = ctypes.CDLL(str(path))
            parallel, thread = torch_cpu.GOMP_parallel, torch_cpu.omp_get_thread_num
            return ctypes.cast(parallel, ctypes.c_void_p).value, ctypes.cast(thread, ctypes.c_void_p).value
    return None, None
