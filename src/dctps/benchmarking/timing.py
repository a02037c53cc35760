"""Times of candidates that take turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]
Times = dict[str, dict[str, float]]

ROUNDS = 5


def measure(steps: Mapping[str, Step], seconds: float) -> Times:
    """Time every candidate once in each round, after an untimed call; a GPU, until it is done.

    No round begins after `seconds`, once there were `ROUNDS`. By name, `median_ms`, `p10_ms` (10th
    percentile) and the number of `rounds` come back.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() < end:
        for name, step in steps.items():
            step()
            start = _now()
            step()
            times[name].append(1e3 * (_now() - start))
        rounds += 1
    return {
        name: {
            "median_ms": statistics.median(taken),
            "p10_ms": statistics.quantiles(taken, n=10, method="inclusive")[0],
            "rounds": rounds,
        }
        for name, taken in times.items()
    }


def _now() -> float:
    """Seconds, once a GPU that is the default device has done all that it was given."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
