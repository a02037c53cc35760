"""What a run costs: to begin, to train, and when it is done. Measured, on this machine's CPU."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

import dctps
from dctps.benchmarking.memory import peak_resident, release_freed, reset_peak, resident
from dctps.benchmarking.opened import opened, read_json, write_json
from dctps.benchmarking.record import processor
from dctps.benchmarking.trial import take_steps
from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.folder import RunFolder
from dctps.experiments.network import build_network
from dctps.experiments.parts import scoring_batches, split
from dctps.experiments.records import LAST
from dctps.experiments.session import Session

COST = "cost.json"
MEASURED = (
    "begin_seconds", "begin_cpu_seconds", "begin_peak_bytes", "step_seconds", "step_cpu_seconds",
    "train_bytes", "final_bytes",
)  # fmt: skip


def measure_cost(
    config: RunConfig, out: Path, *, data_dir: Path | str | None = None, threads: int | None = None
) -> None:
    """Write cost.json into a run's folder, if it is not there or of no use; on the CPU, and on Linux alone.

    The arguments and errors are those of `dctps.experiments.run.run`.
    """
    config = resolve(config)
    folder = RunFolder(out, config)
    folder.finished()  # which refuses the folder of another run
    if read_cost(out) is not None:
        return
    with opened(folder, data_dir=data_dir, device="cpu", threads=threads) as (device, dataset):
        batches = scoring_batches(config, split(config, dataset, device).train, dataset)
        release_freed()
        reset_peak()
        before, started, used = resident(), time.perf_counter(), time.process_time()
        model = build_network(config, dataset.description, device, batches=batches)
        begin = {
            "begin_seconds": time.perf_counter() - started,
            "begin_cpu_seconds": time.process_time() - used,
            "begin_peak_bytes": peak_resident() - before,
        }
        session = Session(config, dataset, device, model=model)
        steps, seconds, cpu_seconds = take_steps(session)
        step = {"step_seconds": seconds / steps, "step_cpu_seconds": cpu_seconds / steps}
        size = {
            "batch_size": config.batch_size,
            "train_bytes": _held(session),
            "final_bytes": dctps.report(session.model).disk_bytes,
            "file_bytes": (out / LAST).stat().st_size if (out / LAST).exists() else None,
        }
        write_json(out / COST, begin | step | size | {"hardware": processor(), "threads": threads})


def read_cost(path: Path) -> dict[str, Any] | None:
    """What `measure_cost` wrote into the run folder `path`; None if it has not, or the file is of no use.

    `begin_*` is of building the network and choosing its weights, memory above what was there before;
    `step_*` of a training step at `batch_size`; `train_bytes` of parameters, gradients, the optimizer's
    state, buffers and tables; `final_bytes` of the file of `save_pretrained`.
    """
    found = read_json(path / COST)
    numbers = (found.get(name, "") for name in MEASURED)
    whole = all(n is None or (isinstance(n, int | float) and math.isfinite(n)) for n in numbers)
    return found if whole and {"hardware", "threads"} <= found.keys() else None


def _held(session: Session) -> int:
    """Bytes that live across steps."""
    tensors = [p.grad for p in session.trainer.parameters if p.grad is not None]
    for slots in session.state()["slots"].values():
        tensors += [slot for slot in slots.values() if isinstance(slot, Tensor)]
    return dctps.report(session.model).memory_bytes + sum(t.numel() * t.element_size() for t in tensors)
