"""Profiles of machines: the constants by which the rule estimates times, a JSON file for each kind.

`benchmarks/fit_rule.py` writes them to `machines/`. A machine without a profile of its own takes the nearest:
its instruction set on another maker's processor, or else `generic`. The environment variable DCTPS_MACHINE,
or `use_machine`, forces one, so that choices repeat elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dctps.kernels import variant

PROFILES = Path(__file__).parent / "machines"
_MAKERS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
_forced: list[str] = []


@dataclass(frozen=True, eq=False)
class Machine:
    """A profile, and for which machine it stands here.

    Attributes:
        name: of the profile.
        digest: of its content.
        fitted_on: the hardware that it was fitted on; None: nothing was fitted.
        kind: this machine, as profiles are named.
        exact: whether the profile is of this kind of machine.
        costs: nanoseconds by path, then `"training"` or `"inference"`, then term.
    """

    name: str
    digest: str
    fitted_on: str | None
    kind: str
    exact: bool
    costs: dict[str, dict[str, dict[str, float]]]

    def constants(self, path: str, training: bool) -> dict[str, float] | None:
        """The constants of a path; those of training where there are none for inference."""
        found = self.costs.get(path)
        if found is None:
            return None
        return found["training"] if training else found.get("inference", found["training"])

    def __str__(self) -> str:
        if self.fitted_on is None:
            return f"profile {self.name!r}, which is not fitted yet: fixed limits decide"
        text = f"profile {self.name!r}, fitted on {self.fitted_on}"
        return text if self.exact else f"{text}: the nearest, since this machine ({self.kind}) has none"


@functools.cache
def machine_of(device: str, which: str) -> Machine:
    """The profile for a kind of device and a variant of the native code.

    Raises:
        ValueError: DCTPS_MACHINE names no profile.
    """
    kind = _kind(device, which)
    forced = forced_machine() or os.environ.get("DCTPS_MACHINE", "")
    name = forced or _nearest(kind)
    path = PROFILES / f"{name}.json"
    if name not in list_machines():
        raise ValueError(f"DCTPS_MACHINE={name!r}: choose from {', '.join(list_machines())}, or unset it")
    content = path.read_bytes()
    profile: dict[str, Any] = json.loads(content)
    exact = name in (kind, kind.rpartition("-")[2])
    return Machine(name, _digest(content), profile["fitted_on"], kind, exact, profile["costs"])


def current_machine(device: str = "cpu") -> Machine:
    """The profile that the rule takes now."""
    return machine_of(device, variant())


def recorded(device: str = "cpu") -> str:
    """The profile that the rule takes now, as a run records it: its name and a hash of its constants."""
    machine = current_machine(device)
    return f"{machine.name} {machine.digest}"


def follow(record: str, device: str = "cpu") -> str:
    """Force the profile that a run recorded, if this version has it unchanged, so that the run repeats.

    Returns:
        what `recorded` gives from now on.
    """
    name, _, digest = record.partition(" ")
    path = PROFILES / f"{name}.json"
    if name in list_machines() and _digest(path.read_bytes()) == digest:
        use_machine(name)
    return recorded(device)


def list_machines() -> list[str]:
    """The names of all profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def use_machine(name: str | None) -> None:
    """Force a profile for the process; None: DCTPS_MACHINE's, or the nearest, again.

    Raises:
        ValueError: there is no such profile.
    """
    if name is not None and name not in list_machines():
        raise ValueError(f"there is no profile {name!r}: choose from {', '.join(list_machines())}")
    _forced[:] = [] if name is None else [name]
    machine_of.cache_clear()


def forced_machine() -> str | None:
    """The profile that `use_machine` forced."""
    return _forced[-1] if _forced else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _kind(device: str, which: str) -> str:
    """This machine as profiles are named: `intel-avx512`, `avx2`, `cuda` and so on."""
    if device != "cpu":
        return device
    if which == "off":  # torch's kernels still use what the processor has
        capability = torch.backends.cpu.get_cpu_capability().lower()
        which = capability if capability in ("avx512", "avx2") else "generic"
    return f"{_maker()}-{which}"


def _nearest(kind: str) -> str:
    names, instructions = list_machines(), kind.rpartition("-")[2]
    alike = [name for name in names if name.rpartition("-")[2] == instructions]
    return next((name for name in (kind, instructions, *alike) if name in names), "generic")


@functools.cache
def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "other"
    named = next((line.rpartition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return _MAKERS.get(named, "other")
