"""Compiles the C sources into one shared object: `python -m dctps.kernels`, and the build hook.

Each kernel has a folder in `csrc`, whose `*.c` are compiled once for each variant of the processor, with
LANES (rows in a vector) and SUFFIX (of exported names) defined; `csrc/common/*.c` is compiled once.
docs/kernels.md says how to add one. The loader refuses a library that was made from other sources. Standard
library only: the build hook loads this file by its path.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = Path(__file__).parent / "libdctps.so"
SUPPORTED = os.name == "posix" and sys.maxsize > 2**32  # else no compiler can help: docs/kernels.md

_FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", *_AVX2, "-mprefer-vector-width=512"]
_X86 = {"avx512": _AVX512, "avx2": _AVX2}
LANES = {"generic": 4, "avx2": 8, "avx512": 16}
_NARROWER = (4, 8)  # lanes of further variants of the linear kernel, for few rows: `avx512x4` and so on


class CompileError(RuntimeError):
    """No compiler, or one that failed."""


def compile_library(
    target: Path = LIBRARY, *, flags: tuple[str, ...] = (), on_note: Callable[[str], object] | None = None
) -> Path:
    """Compile all sources into the shared object `target`, and return that.

    `flags` are further ones for compiler and linker, such as `-fsanitize=address`; `on_note` is called with a
    line for a person before it begins. Without a C compiler (`CC`
    names one), or where it fails, that is a `CompileError` with its output.
    """
    if not SUPPORTED:
        raise CompileError(f"there are no native kernels for {sysconfig.get_platform()}")
    compiler = _compiler()
    variants: dict[str, list[str]] = {"generic": [], **(_X86 if _machine() in ("x86_64", "amd64") else {})}
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for source in sorted(SOURCES.glob("*/*.c")):
            kernel = source.parent.name
            made = Path(folder) / f"{kernel}-{source.stem}.o"
            if kernel == "common":
                jobs.append((source, made, [f'-DMADE_FROM="{source_hash()}"']))
                continue
            for name, more in variants.items():
                suffixes = {name: LANES[name]}
                if kernel == "linear":
                    suffixes |= {f"{name}x{lanes}": lanes for lanes in _NARROWER if lanes < LANES[name]}
                for suffix, lanes in suffixes.items():
                    own = [*more, f"-DLANES={lanes}", f"-DSUFFIX={suffix}"]
                    jobs.append((source, made.with_suffix(f".{suffix}.o"), own))

        if on_note is not None:
            on_note(f"dctps: compiling the native kernels, {len(jobs)} files with {shlex.join(compiler)}")

        def compile_one(job: tuple[Path, Path, list[str]]) -> Path:
            source, result, more = job
            _run([*compiler, *_FLAGS, *flags, *more, f"-I{SOURCES}", "-c", str(source), "-o", str(result)])
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [str(result) for result in pool.map(compile_one, jobs)]
        library = Path(folder) / target.name
        _run([*compiler, *flags, "-shared", *objects, "-o", str(library), "-lpthread", "-lm"])
        partial = target.with_suffix(".partial")
        shutil.copyfile(library, partial)
        partial.replace(target)
    return target


def source_hash() -> str:
    """A hash of all sources, which the library carries too."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def platform_tag() -> str:
    """The wheel tag: a library of the compiler's machine that no Python's ABI knows of."""
    system, _, machine = sysconfig.get_platform().rpartition("-")
    if (made_for := _machine()) in ("x86_64", "aarch64", "arm64"):  # a Python of macOS may be for two of them
        machine = made_for
    if machine == "arm64" and system.startswith("macosx-10."):
        system = "macosx-11.0"  # the first that there is for it
    return "py3-none-" + f"{system}_{machine}".replace("-", "_").replace(".", "_")


def find_compiler() -> list[str] | None:
    """The command of the C compiler: what `CC` says, or one that is found; None where there is none."""
    if named := os.environ.get("CC"):
        return shlex.split(named)
    found = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    return None if found is None else [found]


def _compiler() -> list[str]:
    if (found := find_compiler()) is not None:
        return found
    raise CompileError("no C compiler: install gcc or clang, or name one in CC")


def _machine() -> str:
    """What the compiler makes code for, which `CC` may choose: `x86_64`, `aarch64`, `arm64`, ..."""
    return _run([*_compiler(), "-dumpmachine"]).partition("-")[0]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise CompileError(f"{shlex.join(command)}\n{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    return done.stdout
