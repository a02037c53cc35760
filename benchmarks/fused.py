"""What fused norms and channels last are worth: steps beside those with torch's own norms, and in NCHW.

python benchmarks/fused.py [--compile] [--rounds N]

Candidates take turns, and the processor time of one thread is taken, which other work on the machine
disturbs less than the time that passes. Writes benchmarks/results/fused.json, a table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch

from dctps import unfuse_
from dctps.benchmarking.networks import BATCHES, forward_pass, images_for, network_for, training_step
from dctps.benchmarking.record import provenance
from dctps.files import write_atomically

RESULT = Path(__file__).parent / "results" / "fused.json"


def main() -> None:
    """Measure every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="the step of the compiled network too")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--models", nargs="+", default=["vgg19", "resnet50", "mobilenetv2"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for model in asked.models:
        images = images_for(BATCHES[model])
        fused = network_for(model, "sdct", 1e-3)
        networks = {
            "torch's norms": (unfuse_(copy.deepcopy(fused)), images),
            "fused": (fused, images),
            "fused, NCHW": (copy.deepcopy(fused), images.contiguous()),
        }
        for what, make in (("training step", training_step), ("forward pass", forward_pass)):
            steps = {name: make(*given) for name, given in networks.items()}
            if asked.compile and what == "training step":
                plain = copy.deepcopy(networks["torch's norms"][0])
                steps["torch.compile"] = make(torch.compile(plain), images)
            taken = {name: [] for name in steps}
            for _ in range(asked.rounds + 2):
                for name, step in steps.items():
                    start = time.process_time()
                    step()
                    taken[name].append(1e3 * (time.process_time() - start))
            times = {name: statistics.median(of[2:]) for name, of in taken.items()}
            low = {name: min(of[2:]) for name, of in taken.items()}
            cell = {"model": model, "batch": len(images), "density": 1e-3, "what": what}
            cell |= {"median_ms": times, "least_ms": low}
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    command = f"python benchmarks/fused.py --rounds {asked.rounds}{' --compile' if asked.compile else ''}"
    write_atomically(
        RESULT, (json.dumps({**provenance(command, 1), "cells": cells}, indent=1) + "\n").encode()
    )


if __name__ == "__main__":
    main()
