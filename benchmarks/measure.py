"""Measure everything of docs/performance.md on an idle machine, in about twenty minutes.

python benchmarks/measure.py && python benchmarks/tables.py && python benchmarks/asked.py

Writes benchmarks/results/bench-amd.json or bench-intel.json, by the processor; with words after it only the
commands that begin with one of them, such as `linear`, whose new results take the place of the old ones.

SparseProp, scipy and torch-dct are measured where they are installed (extra `peers`).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from dctps.benchmarking.record import processor, read_runs
from dctps.files import write_atomically

RESULT = f"benchmarks/results/bench-{'amd' if 'AMD' in processor() else 'intel'}.json"

# "linear" runs without --backends are what performance.py plots against density.
COMMANDS = (
    "linear --offsets dct sdct zero --backends auto transform --seconds 0.7",
    "linear --sizes 512 1024 2048 4096 8192 --nnz-per-row 8 --seconds 0.5",
    "linear --sizes 512 1024 2048 4096 --densities 0.0001 0.0003 0.001 0.003 0.01 0.03 0.1 --seconds 0.3",
    "transform --sizes 512 576 768 1024 1152 1536 2048 2304 3072 4096 4608 8192 --seconds 0.6",
    "conv --seconds 0.7",
    "network --models vgg19 resnet50 --seconds 5",
    "network --models mobilenetv2 lenet5 --seconds 5",
    "latency --threads 1 --seconds 1",
    "layers --seconds 0.7",
    "memory --models vgg19 resnet50",
)


def main() -> None:
    """Run the commands one after the other, into a new file; those that fail are named at the end."""
    root = Path(__file__).parent.parent
    chosen = [command for command in COMMANDS if command.split()[0] in (sys.argv[1:] or command)]
    replaced = {command.split()[0] for command in chosen}
    old = read_runs(root / RESULT) if (root / RESULT).exists() else []
    kept = [run for run in old if run["part"] not in replaced]
    write_atomically(root / RESULT, (json.dumps({"runs": kept}, indent=1) + "\n").encode())
    failed = []
    for command in chosen:
        begun = time.perf_counter()
        full = [sys.executable, "-m", "dctps", "bench", *shlex.split(command), "--json", RESULT]
        done = subprocess.run(full, cwd=root, check=False)
        print(f"{time.perf_counter() - begun:.0f} s: dctps bench {command}", flush=True)
        if done.returncode:
            failed.append(command)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
