"""`dctps doctor`: what is installed, what serves, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import dctps

_FILES = {"cifar10": "cifar-10-", "cifar100": "cifar-100-", "tinyimagenet": "tiny-imagenet-200"}
_OF_DEVELOPERS = ("dev", "docs", "peers", "release")  # extras that nobody needs to use the program


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, which native kernels serve, and what is missing, with the remedy."""

    def perform(self, argv: Sequence[str]) -> int:
        """Print a line for each part."""
        for name, found in _examine():
            print(f"{name:<11} {found}", flush=True)
        return 0


def _examine() -> Iterator[tuple[str, str]]:
    import torch  # noqa: PLC0415

    from dctps.benchmarking.record import processor  # noqa: PLC0415

    yield "dctps", f"{dctps.__version__} in {Path(dctps.__file__).parent}"
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "torch", torch.__version__
    instructions = torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{processor()}, {instructions}; torch uses {torch.get_num_threads()} threads"
    yield "gpu", _gpu()
    yield "kernels", _kernels()
    yield "data", _data()
    yield from _extras().items()


def _gpu() -> str:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return "none that torch can use: everything runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    from dctps.gpu import is_usable  # noqa: PLC0415

    usable = is_usable(torch.zeros(1, device="cuda"))
    triton = "" if usable else "; no Triton, so torch operations serve: pip install 'dctps[gpu]'"
    return ", ".join(names) + triton


def _kernels() -> str:
    from dctps.kernels import missing, variant  # noqa: PLC0415
    from dctps.kernels.build import LIBRARY, find_compiler  # noqa: PLC0415

    named = os.environ.get("DCTPS_KERNELS")
    if named == "off":
        return "off, as DCTPS_KERNELS says: slower torch operations serve"
    if (problem := missing()) is not None:
        compiler = find_compiler()
        return f"off: {problem} (C compiler: {shlex.join(compiler) if compiler else 'none'})"
    made = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", LIBRARY.read_bytes())
    by = f"compiled by {made[0].decode()}" if made else "compiled"
    try:
        return f"{variant()}, {by}, in {LIBRARY}"
    except ValueError as error:  # a name in DCTPS_KERNELS that does not run here
        return f"off: {error}"


def _data() -> str:
    named = os.environ.get("DCTPS_DATA")
    if not named:
        return "no folder: digits are there; name one in DCTPS_DATA, or give --data-dir, for others"
    folder = Path(named).expanduser()
    try:
        names = [folder.name, *(entry.name for entry in folder.iterdir())]
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror}): DCTPS_DATA names it"
    found = [name for name, start in _FILES.items() if any(entry.startswith(start) for entry in names)]
    return f"{folder}, with {', '.join(found) or 'none of ' + ', '.join(_FILES)}"


def _extras() -> dict[str, str]:
    """Of each extra its packages with their versions, or what installs it."""
    try:
        wanted = metadata.requires("dctps") or []
    except metadata.PackageNotFoundError:
        return {"extras": "unknown, as dctps is not installed: pip install ."}
    packages: dict[str, list[str]] = {}
    for line in wanted:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)", line)
        if name is not None and extra is not None and extra[1] not in _OF_DEVELOPERS:
            packages.setdefault(extra[1], []).append(name[0])
    return {extra: _versions(extra, names) for extra, names in sorted(packages.items())}


def _versions(extra: str, names: Sequence[str]) -> str:
    found, gone = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            gone.append(name)
    remedy = f"no {', '.join(gone)}: pip install 'dctps[{extra}]'"
    return "; ".join(filter(None, [", ".join(found), remedy if gone else ""]))
