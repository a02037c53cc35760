"""What it is worth that a process keeps freed memory: steps in processes that do, and that do not, in turn.

python benchmarks/kept_memory.py [--pairs N]

Each process times a training step of a network on two threads, and counts the pages that it takes from the
system in one. Writes benchmarks/results/kept_memory.json, a table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dctps import keep_freed_memory
from dctps.benchmarking.networks import BATCHES, images_for, network_for, training_step
from dctps.benchmarking.record import provenance
from dctps.files import write_atomically

RESULT = Path(__file__).parent / "results" / "kept_memory.json"
STEPS, WARM = 12, 3


def main() -> None:
    """Measure every cell, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "OFFSET", "KEEP"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(*asked.one)))
        return
    cells = []
    for model in ("vgg19", "resnet50", "mobilenetv2"):
        for offset in ("dense", "sdct"):
            found = {"yes": [], "no": []}
            for _ in range(asked.pairs):
                for keep, times in found.items():
                    times.append(in_a_process(model, offset, keep))
            cell = {"model": model, "offset": offset, "batch": BATCHES[model]}
            for keep, name in (("no", "returned"), ("yes", "kept")):
                cell[f"{name}_ms"] = statistics.median(each["ms"] for each in found[keep])
                cell[f"{name}_pages"] = statistics.median(each["pages"] for each in found[keep])
                cell[f"{name}_mb"] = statistics.median(each["mb"] for each in found[keep])
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    result = {**provenance(f"python benchmarks/kept_memory.py --pairs {asked.pairs}", 2), "cells": cells}
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


def in_a_process(model: str, offset: str, keep: str) -> dict[str, float]:
    """What `one` finds in a process of its own."""
    command = [sys.executable, __file__, "--one", model, offset, keep]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def one(model: str, offset: str, keep: str) -> dict[str, float]:
    """The median time of a step, pages taken in one, and the most resident memory of the process."""
    if keep == "yes":
        keep_freed_memory()
    torch.set_num_threads(2)
    step = training_step(network_for(model, offset, 1e-3), images_for(BATCHES[model]))
    for _ in range(WARM):
        step()
    times, before = [], pages()
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": statistics.median(times), "pages": (pages() - before) / STEPS, "mb": most}


def pages() -> int:
    """Pages that this process has taken from the system."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
