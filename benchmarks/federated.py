"""Federated rounds of the example app: accuracy against central training, bytes by Flower's own count.

    DCTPS_DATA=... PYTHONPATH=examples/federated python benchmarks/federated.py --rounds 60 --epochs 4

Flower's stock FedAvg and the app's own ClientApp, with its mods that count bytes, in one process: the clients
of a round are called one after the other in place of Flower's engine, which changes no number. Central
training takes the same network, sees as many images, in steps of Adam at batch 128, its rate on a cosine.
The run `bytes` counts what a network's numbers weigh, and trains nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import platform
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from rounds import client_app, task

import dctps
from dctps.benchmarking.record import commit, processor
from dctps.data import batches

APP = Path(__file__).parents[1] / "examples" / "federated" / "pyproject.toml"
RESULT = Path(__file__).parent / "results" / "federated.json"
CLIENTS = 10


class Counted(logging.Handler):
    """The sizes that Flower's mods have logged."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, set[int]] = {"Incoming": set(), "Outgoing": set()}

    def emit(self, record: logging.LogRecord) -> None:
        """Look for a size in a line."""
        if found := re.match(r"(Incoming|Outgoing) message size: (\d+) bytes", record.getMessage()):
            self.sizes[found[1]].add(int(found[2]))


class Here:
    """A Grid whose clients are called in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.contexts = {
            i + 1: Context(0, i + 1, {"partition-id": i, "num-partitions": CLIENTS}, RecordDict(), config)
            for i in range(CLIENTS)
        }

    def get_node_ids(self) -> list[int]:
        """All clients."""
        return list(self.contexts)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Any]:
        """Each client's reply."""
        return [client_app.app(copy.deepcopy(m), self.contexts[m.metadata.dst_node_id]) for m in messages]


def federated(config: dict[str, Any]) -> dict[str, Any]:
    """All rounds."""
    counted = Counted()
    logging.getLogger("flwr").addHandler(counted)
    model: Any = task.build(config)
    rounds = config["num-server-rounds"]

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round < rounds:
            return None
        dctps.load_trainable_state_(model, arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": task.accuracy(model, config)})

    start = time.perf_counter()
    result = FedAvg(fraction_evaluate=0.0).start(
        Here(config), task.arrays_of(model, config), rounds, evaluate_fn=evaluate
    )
    logging.getLogger("flwr").removeHandler(counted)
    return {
        "accuracy": result.evaluate_metrics_serverapp[rounds]["accuracy"],
        "bytes_to_client": max(counted.sizes["Incoming"]),
        "bytes_to_server": max(counted.sizes["Outgoing"]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def central(config: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The same network on all images."""
    model, found = task.build(config), task.data(config["dataset"])
    optimizer = torch.optim.Adam(model.train().parameters(), config["lr"])
    steps, done, start = epochs * (len(found.train) // 128), 0, time.perf_counter()
    draw = torch.Generator().manual_seed(config["seed"])
    for _ in range(epochs):
        for x, y in batches(
            found.train, 128, mean=found.mean, std=found.std, generator=draw, shuffle=True, drop_last=True
        ):
            rate = config["lr"] * (1 + math.cos(math.pi * done / steps)) / 2
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            done += 1
    return {"accuracy": task.accuracy(model, config), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """The rows that are asked for, added to those of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["central", "iid", "dirichlet"])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--method", default="dctps")
    parser.add_argument("--density", type=float, default=0.005)
    parser.add_argument("--concentration", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--statistics", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, 0, 0  # as Flower's engine does
    logging.getLogger("flwr").handlers[0].setLevel(logging.WARNING)
    config = tomllib.loads(APP.read_text())["tool"]["flwr"]["app"]["config"]
    for name in ("model", "method", "density", "lr", "seed", "dataset", "statistics"):
        config[name] = getattr(given, name)
    config |= {"num-server-rounds": given.rounds, "share": given.epochs / given.rounds}
    config |= {"batch-size": given.batch_size, "steps": given.steps}
    rows = json.loads(given.result.read_text())["rows"] if given.result.exists() else []
    for run in given.runs:
        config["concentration"] = given.concentration if run == "dirichlet" else 0.0
        if run == "bytes":
            found = {"bytes": task.arrays_of(task.build(config), config).count_bytes()}
        else:
            found = central(config, given.epochs) if run == "central" else federated(config)
        row = {"run": run, "epochs": given.epochs, "clients": CLIENTS, **config, **found}
        row |= {"command": f"python benchmarks/federated.py {' '.join(sys.argv[1:])}", "commit": commit()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        hardware = f"{platform.machine()}, {processor()}, 1 thread, other work beside it"
        result = {"hardware": hardware, "torch": torch.__version__, "rows": rows}
        given.result.parent.mkdir(exist_ok=True)
        given.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
