"""What a result file says of how it came about."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from dctps.files import make_folder, write_atomically
from dctps.kernels import variant

_PACKAGES = ("dctps", "torch", "numpy", "scipy", "torch-dct")
_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "DCTPS_KERNELS", "DNNL_MAX_CPU_ISA")


def commit() -> str:
    """The commit of the checkout that dctps is imported from, `-dirty` if sources differ; else nothing."""
    here = Path(__file__).parent.parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return ""
    head, changes = _git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain", ".")
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor() -> str:
    """Number and name of the CPU's cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def provenance(command: str, threads: int) -> dict[str, Any]:
    """Command, commit, hardware (the GPU where it is the default device), versions, threads, load before."""
    gpu = torch.cuda.get_device_name() if torch.get_default_device().type == "cuda" else ""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": command,
        "commit": commit(),
        "hardware": gpu or processor(),
        "system": platform.platform(),
        "kernels": variant(),
        "versions": versions,
        "threads": threads,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "load": os.getloadavg()[0],
    }


def add_run(path: Path, run: dict[str, Any]) -> None:
    """Put a run into a result file; it replaces an older one of the same command."""
    runs = read_runs(path) if path.exists() else []
    kept = [old for old in runs if old["command"] != run["command"]]
    make_folder(path.parent)
    write_atomically(path, (json.dumps({"runs": [*kept, run]}, indent=1) + "\n").encode())


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs in a result file; ValueError if it is none."""
    try:
        runs = json.loads(path.read_bytes())["runs"]
        commands = [run["command"] for run in runs]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no results of dctps bench: give --json another name") from None
    return runs if commands else []
