"""Each file that an index gets, installed where there is no compiler, no source tree and no extra."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dctps.kernels import runnable_variants

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
WITHOUT = (
    "slower torch operations serve: install a C compiler (gcc or clang), and run `python -m dctps.kernels`"
)


def needed(names: list[str]) -> set[Path]:
    """What these packages, and all that they require, have in this environment's site-packages."""
    found, seen, open_ = set(), set(), [Requirement(name) for name in names]
    while open_:
        requirement = open_.pop()
        if requirement.name in seen:
            continue
        seen.add(requirement.name)
        package = importlib.metadata.distribution(requirement.name)
        found |= {Path(package.locate_file(file.parts[0])) for file in package.files or ()}
        for further in map(Requirement, package.requires or ()):
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                open_.append(further)
    return {path for path in found if path.name not in {"..", "__pycache__"}}


def empty_environment(folder: Path, names: list[str]) -> Path:
    """A virtual environment with those packages, as links, and the folder of its programs."""
    venv.create(folder, symlinks=os.name != "nt")
    variables = {"base": str(folder), "platbase": str(folder), "installed_base": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    for path in needed(names):
        (site / path.name).symlink_to(path)
    return folder / SCRIPTS


def environ(programs: Path) -> dict[str, str]:
    """The variables of a process that finds no program but the environment's own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DCTPS", "PYTHON", "CC"))
    }
    return {**kept, "PATH": str(programs)}


def run(programs: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environ(programs), capture_output=True, text=True, check=True, timeout=300
    )


def test_each_file_installs_without_a_compiler_and_trains(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """One test for all, since they are made once, which takes most of its time."""
    for tool in ("hatchling", "twine", *(["auditwheel"] if sys.platform == "linux" else [])):
        pytest.importorskip(tool, reason="needs the extra `release`")
    if not runnable_variants():
        pytest.skip("the native kernels were not compiled: there may be no compiler")
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    subprocess.run([sys.executable, ROOT / "tools" / "make_dist.py", "--out", made], check=True)
    elsewhere.mkdir()
    version = PROJECT["project"]["version"]
    files = {file.name.removeprefix(f"dctps-{version}"): file for file in made.iterdir()}
    (native,) = {*files} - {".tar.gz", "-py3-none-any.whl"}
    assert len(files) == 3
    if sys.platform == "linux":
        assert re.fullmatch(r"-py3-none-manylinux_2_\d+_\w+\.whl", native)
    for ending, file in files.items():
        with subtests.test(file.name):
            names = [*PROJECT["project"]["dependencies"], *(["hatchling"] if ending == ".tar.gz" else [])]
            programs = empty_environment(tmp_path / f"environment{ending}", names)
            python, dctps = str(programs / "python"), str(programs / "dctps")
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
            run(programs, elsewhere, *pip, "--no-build-isolation", "--no-cache-dir", str(file))
            where = run(programs, elsewhere, python, "-c", "import dctps; print(dctps.__file__)").stdout
            assert Path(where.strip()).is_relative_to(programs.parent)
            assert "usage: dctps" in run(programs, elsewhere, dctps, "--help").stdout
            out = tmp_path / f"run{ending}"
            said = run(programs, elsewhere, dctps, "train", "--epochs", "1", "--out", str(out)).stderr
            summary = json.loads((out / "summary.json").read_text())
            assert summary["kernels"] == (runnable_variants()[-1] if ending == native else "off")
            assert said.count("native kernels") == said.count(WITHOUT) == (0 if ending == native else 1)
            assert summary["last_test_accuracy"] > 0.15  # chance is 0.1
    metadata = zipfile.ZipFile(files[native]).read(f"dctps-{version}.dist-info/METADATA").decode()
    source = PROJECT["project"]["urls"]["Source"]
    assert f"]({source}/blob/main/docs/worth.md)" in metadata
    assert not re.findall(r"\]\((?!https?:)[^)]+", metadata)
