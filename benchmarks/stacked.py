"""What a run of LeNet-5 on CIFAR-10 costs in a stack and by itself, and what a whole figure costs.

    python benchmarks/stacked.py METHOD DENSITY     # one cell, about 20 seconds
    python benchmarks/stacked.py                    # all cells that are missing

Both sides load, augment, step, and evaluate as a run does, on one thread, from real images. An epoch's
seconds are those of its fastest step among some and of the test images, scaled to 352 steps and 15,000 images
of evaluation. A stack has sixteen networks of the cell, of as many seeds (hyperplanes four), and its seconds
are divided by their number.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dctps.benchmarking.record import provenance
from dctps.data import load_dataset
from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.parts import split
from dctps.experiments.session import Session
from dctps.experiments.settings import torch_settings
from dctps.files import write_atomically
from dctps.stacks import Stack

RESULT = Path(__file__).parent / "results" / "stacked.json"
METHODS = ("dctps", "sdctps", "random-epl", "random-erk", "snip", "synflow", "hyperplane")
DENSITIES = (0.0005, 0.005, 0.05)
STEPS = 16


class Enough(Exception):  # noqa: N818
    """All steps have been timed."""


def marks(count: int) -> tuple[list[float], Callable[[], None]]:
    """A list of times, and what adds to it before each step until there are enough."""
    found: list[float] = []

    def between() -> None:
        found.append(time.perf_counter())
        if len(found) > count:
            raise Enough

    return found, between


def step_seconds(work: Callable[[Callable[[], None]], Any]) -> float:
    """Seconds of a step, the fastest of all but the first."""
    found, between = marks(STEPS)
    with suppress(Enough):
        work(between)
    return min(b - a for a, b in pairwise(found[1:]))


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cell(method: str, density: float) -> dict[str, Any]:
    """Seconds of an epoch in a stack and alone."""
    count = 4 if method == "hyperplane" else 16
    with torch_settings("cpu", 1, 0) as place:
        dataset = load_dataset("cifar10")

        def session(seed: int) -> Session:
            config = RunConfig(
                model="lenet5", dataset="cifar10", method=method, density=density, seed=seed, batch_seed=0
            )
            torch.manual_seed(seed)
            return Session(resolve(config), dataset, place, parts=parts)

        parts = split(resolve(RunConfig(model="lenet5", dataset="cifar10")), dataset, place)
        sessions = [session(seed) for seed in range(count)]
        stack, leader = Stack([one.model for one in sessions]), sessions[0]

        def together(between: Callable[[], None]) -> None:
            for images, labels in leader.training_batches(between):
                losses = stack.step(images, labels)
                for one, loss, correct in zip(
                    sessions, losses.loss.tolist(), losses.correct.tolist(), strict=True
                ):
                    one.take_step(loss, correct, len(labels))

        single = session(0)
        alone = step_seconds(lambda between: single.train_epoch(progress=False, between=between))
        stacked = step_seconds(together) / count
        test_alone = seconds(single.test)
        test = leader.evaluation_batches(parts.test, lambda: None)
        test_stacked = seconds(lambda: stack.evaluate(test)) / count
    steps, evaluated = leader.trainer.steps, (len(parts.validation) + len(parts.test)) / len(parts.test)
    row = {
        "method": method,
        "density": density,
        "networks": count,
        "step_ms": {"alone": 1e3 * alone, "stacked": 1e3 * stacked},
        "epoch_seconds": {
            "alone": steps * alone + evaluated * test_alone,
            "stacked": steps * stacked + evaluated * test_stacked,
        },
    }
    row["speed_up"] = row["epoch_seconds"]["alone"] / row["epoch_seconds"]["stacked"]
    return row


def wanted(arguments: list[str], done: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """The cells to measure."""
    if arguments:
        yield arguments[0], float(arguments[1])
        return
    there = {(row["method"], row["density"]) for row in done}
    yield from ((m, d) for m in METHODS for d in DENSITIES if (m, d) not in there)


def main() -> None:
    """Measure, and keep what was measured before."""
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for method, density in wanted(sys.argv[1:], rows):
        row = cell(method, density)
        print(json.dumps(row))
        rows = [old for old in rows if (old["method"], old["density"]) != (method, density)] + [row]
        rows.sort(key=lambda row: (METHODS.index(row["method"]), row["density"]))
        result = {**provenance("python benchmarks/stacked.py", 1), "rows": rows}
        write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
