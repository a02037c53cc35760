"""The intrinsic dimension of a problem: the fewest dimensions that reach a share of the dense accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.network import count_weights
from dctps.experiments.records import Record
from dctps.experiments.run import data_of, run
from dctps.files import write_atomically

RESULT = "intrinsic.json"


def intrinsic_dimension(
    config: RunConfig,
    *,
    out: Path | str,
    share: float = 0.9,
    dense_accuracy: float | None = None,
    seeds: Sequence[int] | None = None,
    ratio: float = 1.1,
    on_accuracy: Callable[[str, float], None] | None = None,
    **choices: Any,
) -> Record:
    """Search the smallest d at which training on a hyperplane reaches `share` of the dense accuracy.

    First d is doubled from N / 1000 until it does, N the prunable weights (or halved, while it does); then
    the gap is halved on a logarithmic scale. Accuracy is the best on validation, without a validation set the
    last on test, as a mean over the seeds. Every d is a run folder in `out`: a finished one is used again, an
    unfinished one goes on. The dense network has the same choices, except for its own default lr and weight
    decay.

    Args:
        config: of the hyperplane's runs; the search replaces its density and seed.
        out: folder of the runs and of the result, `intrinsic.json`.
        share: of the dense accuracy, in (0, 1]; 0.9 gives Li et al.'s d_int90.
        dense_accuracy: to compare with (None: that of dense runs made here).
        seeds: of the runs (None: that of `config`).
        ratio: largest ratio, above 1, of the d found to one that is too small.
        on_accuracy: called with `"dense"` or d in words, and its accuracy.
        choices: `data_dir`, `download`, `device`, `threads`, `progress`, `checkpoint_interval`: as for `run`.

    Returns:
        What intrinsic.json holds, which is `intrinsic_dimension` (None: not even N reaches it), `too_small`
        (the largest d seen below it that does not; None: d = 1 does), `target`, `dense_accuracy`, `share`,
        `seeds`, `weights` (N), and `tried`, a list of `dimensions` and `accuracy`.

    Raises:
        ValueError: a method without a projection, a share or ratio out of range; and as for `run`.

    Reference: Li et al., "Measuring the Intrinsic Dimension of Objective Landscapes", ICLR 2018, section 2.
    """
    if resolve(config).projection is None:
        raise ValueError(f"the method {config.method!r} has no dimensions to search: use hyperplane")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}: 0.9 is usual")
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}; for instance 1.1")
    seeds = [config.seed] if seeds is None else list(seeds)
    note = on_accuracy or (lambda name, accuracy: None)
    out = Path(out)
    data = data_of(config, choices.get("data_dir"), choices.get("download", False), None)
    weights = count_weights(config.model, data.description)

    def accuracy_of(config: RunConfig, name: str) -> float:
        summaries = [run(replace(config, seed=s), out=out / f"{name}-seed{s}", **choices) for s in seeds]
        measure = "last_test_accuracy" if config.validation_size == 0 else "best_val_accuracy"
        accuracy = float(mean(summary[measure] for summary in summaries))
        note(name, accuracy)
        return accuracy

    if dense_accuracy is None:
        dense = replace(config, method="dense", density=None, projection=None, lr=None, weight_decay=None)
        dense_accuracy = accuracy_of(dense, "dense")
    target = share * dense_accuracy
    tried: dict[int, float] = {}

    def reaches(d: int) -> bool:
        # Of N weights this density's budget is d exactly: the quotient's error is far below a half.
        tried[d] = accuracy_of(replace(config, density=d / weights), f"d{d}")
        return tried[d] >= target

    found, too_small = search_smallest(reaches, max(1, round(weights / 1000)), weights, ratio)
    result = {
        "intrinsic_dimension": found,
        "too_small": too_small,
        "target": target,
        "dense_accuracy": dense_accuracy,
        "share": share,
        "seeds": seeds,
        "weights": weights,
        "tried": [{"dimensions": d, "accuracy": tried[d]} for d in sorted(tried)],
    }
    write_atomically(out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    return result


def search_smallest(
    reaches: Callable[[int], bool], first: int, largest: int, ratio: float
) -> tuple[int | None, int | None]:
    """The smallest number that `reaches`, within `ratio`, and the largest seen that does not.

    `reaches` is called once for each number from 1 to `largest` that is tried, `first` first. The number is
    None where even `largest` does not reach, and the other where 1 does. Neighbours may differ by more.
    """
    low = high = None
    d = first
    while low is None or high is None:
        if reaches(d):
            if d == 1:
                return 1, None
            high, d = d, d // 2
        else:
            if d == largest:
                return None, d
            low, d = d, min(2 * d, largest)
    while high > low + 1 and high > ratio * low:
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high, low
