"""How a figure came about, as a file beside it."""

from __future__ import annotations

import json
from pathlib import Path

from dctps.analysis.runs import read_runs
from dctps.benchmarking.initial import read_examined
from dctps.benchmarking.record import commit, processor
from dctps.files import write_atomically
from dctps.sweeps.grid import Runs

# Of a run's environment, as summary.json has it.
_PLACE = ("device", "threads", "cpu", "kernels", "versions")


def write_origin(name: str, out: Path, command: str, runs: Runs) -> Path:
    """Write NAME.json: the command, the commit and the machine that drew, and where its runs were trained.

    Args:
        name: of the figure; the file is figureNAME.json, or table1.json.
        out: the figure's folder, with the runs in runs/.
        command: that makes the figure.
        runs: of the figure, by name.

    Returns:
        The file.
    """
    wanted = set(runs.values())
    readable = read_runs(out / "runs", on_damage=lambda name, reason: None)  # who draws has said so
    found = [run for run in readable if run.config in wanted]
    places = [{key: r.summary.get(key) for key in _PLACE} for r in found if r.summary is not None]
    record = {
        "command": command,
        "commit": commit(),
        "hardware": processor(),
        "runs": len(wanted),
        "finished": len(places),
        "examined": sum(read_examined(run.path) is not None for run in found),
        "trained_on": [place for i, place in enumerate(places) if place not in places[:i]],
    }
    path = out / (f"{name}.json" if name.startswith("table") else f"figure{name}.json")
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
