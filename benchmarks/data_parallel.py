"""Two processes with half of each batch against one with the whole: agreement, and bytes on the wire.

    python benchmarks/data_parallel.py

LeNet-5 for 20 steps of SGD with momentum, float32, CPU, gloo. Bytes are those that each process hands to
collective operations, all of them: gradients, the sums of a step, and averaged statistics (LeNet-5 has none).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

from dctps import sparsify_
from dctps.benchmarking.record import commit
from dctps.models import build_model
from dctps.training import Precision, Processes, build_schedule, joined, train_epoch

STEPS, BATCH = 20, 128
DENSITIES = (None, 0.1, 0.01, 0.001)  # None: the dense network
RESULT = Path(__file__).parent / "results" / "data_parallel.json"


def train(density: float | None, processes: Processes) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("lenet5", 10, 3)
    if density is not None:
        model = sparsify_(model, density)
    processes.check_same(model)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(BATCH, 3, 32, 32, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(STEPS)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = build_schedule("constant", optimizer, total_steps=STEPS)
    precision = Precision("off", "cpu")
    train_epoch(model, batches, optimizer, schedule, epoch=1, precision=precision, processes=processes)
    return model


def worker(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        **{"TORCHELASTIC_RUN_ID": "benchmark", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    with joined(torch.device("cpu")) as processes:
        for density in DENSITIES:
            before = processes.bytes_sent
            model = train(density, processes)
            if rank == 0:
                parameters = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
                queue.put((density, processes.bytes_sent - before, parameters))


def main() -> None:
    """Measure every density, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    running = mp.start_processes(worker, (port, queue), 2, join=False, start_method="spawn")
    cells = []
    for _ in DENSITIES:
        density, sent, parameters = queue.get()
        alone = train(density, Processes())
        difference = max(
            float((p.detach() - torch.from_numpy(parameters[name])).abs().max())
            for name, p in alone.named_parameters()
        )
        cells.append(
            {
                "density": density,
                "trained_numbers": sum(p.numel() for p in alone.parameters()),
                "bytes_per_step": sent / STEPS,
                "largest_difference_of_a_parameter": difference,
            }
        )
        print(cells[-1], flush=True)
    while not running.join():
        pass
    result = {
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "model": "lenet5, 3 input channels, 10 classes",
        "steps": STEPS,
        "batch": BATCH,
        "processes": 2,
        "torch": torch.__version__,
        "once_at_the_start": "64 bytes: the digest of the network",
        "cells": cells,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
