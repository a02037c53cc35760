"""What several commands share: flags of the machine and of the output, and lines for a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USAGE_ERROR = 2
FIRST = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all


@dataclass(frozen=True)
class Machine:
    """Where it runs; no part of what the run is."""

    data_dir: Path | None = None
    """folder (or .npz file) of the data (None: the environment variable DCTPS_DATA)"""
    download: bool = False
    """fetch missing data files into the data folder"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is a GPU where there is one"""
    threads: int | None = None
    """CPU threads (None: torch's choice); runs repeat bit for bit at one number of threads"""


@dataclass(frozen=True)
class Output:
    """What is written and shown."""

    out: Path | None = None
    """the run folder (None: runs/ and a name made of the run's choices)"""
    progress: bool = True
    """show a bar on a terminal"""
    checkpoint_interval: int | None = None
    """steps between two saves within an epoch (None: the run is saved at each epoch's end)"""


def print_note(line: str) -> None:
    """A line for a person, on standard error."""
    if FIRST:
        print("dctps:", line, file=sys.stderr, flush=True)


def print_failures(failed: Mapping[str, str]) -> None:
    """The errors of runs, by name, on standard error."""
    for name, message in failed.items():
        print(f"dctps: error: {name}: {message}", file=sys.stderr)
