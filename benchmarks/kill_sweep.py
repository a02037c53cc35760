"""Kill a whole sweep, its workers too, at random moments; compare with a sweep that is left alone.

    PYTHONPATH=src python -m benchmarks.kill_sweep

A sweep of small runs of several methods on the digits, two at a time. Its processes, which are a group of
their own, get a SIGKILL at a random moment, so that none can save anything, and the same command is given
again. A sweep that is finished before all kills are used up is followed by another in a new folder. After
each kill no epoch that was recorded may be missing, and no file of a run that was finished before may have
been written to again. In the end all runs must have the same bytes in their networks, the same metrics and
the same summary as those of the sweep that was left alone, times aside.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.faults import outcome

from dctps.benchmarking.record import provenance

RESULT = Path(__file__).parent / "results" / "kill_sweep.json"
WORKERS = 2
GRID = """
epochs = 3
density = [0.05, 0.01]

[[runs]]
method = ["dctps", "snip", "dense"]

[[runs]]
method = ["rigl", "dsr"]
update_interval = 5

[[runs]]
method = "imp"
levels = 2
density = 0.05
"""


def start(folder: Path, file: Path) -> subprocess.Popen[str]:
    """The sweep in `folder`, in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "dctps",
        "sweep",
        "--file",
        file,
        "--out",
        folder,
        "--workers",
        str(WORKERS),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def complete(folder: Path, file: Path) -> dict[str, Any]:
    """Let the sweep in `folder` end, and give the outcomes of its runs."""
    sweep = start(folder, file)
    errors = sweep.communicate()[1]
    assert sweep.returncode == 0, errors
    return {path.name: outcome(path) for path in sorted(folder.iterdir())}


def finished(folder: Path) -> dict[str, dict[str, int]]:
    """The finished runs, and when each file of theirs was last written to, in nanoseconds.

    A run that was killed right after its summary has its state still to delete, and every process takes the
    lock that looks after that.
    """
    return {
        path.parent.name: {
            file.name: file.stat().st_mtime_ns
            for file in path.parent.iterdir()
            if file.name not in ("lock", "state.safetensors", "rewind.safetensors")
        }
        for path in folder.glob("*/summary.json")
    }


def epochs(folder: Path) -> dict[str, int]:
    """How many epochs each run has recorded."""
    return {p.parent.name: len(p.read_text().splitlines()) for p in folder.glob("*/metrics.jsonl")}


def kill_and_compare(kills: int, longest: float, scratch: Path) -> dict[str, Any]:
    """Kill sweeps until all kills are used up, and let each go on to its end.

    Moments are drawn up to `longest` of the time that a sweep takes which is left alone.

    Raises:
        AssertionError: something was lost, a finished run was done again, or the outcomes differ.
    """
    file = scratch / "sweep.toml"
    file.write_text(GRID)
    began = time.monotonic()
    expected = complete(scratch / "whole", file)
    duration = time.monotonic() - began
    draw = random.Random(0)
    moments: list[dict[str, Any]] = []
    sweeps = 0
    while len(moments) < kills:
        folder = scratch / f"sweep{sweeps}"
        sweeps += 1
        done: dict[str, dict[str, int]] = {}
        recorded: dict[str, int] = {}
        while len(done) < len(expected) and len(moments) < kills:
            sweep = start(folder, file)
            moment = draw.uniform(0, longest * duration)
            began = time.monotonic()
            while sweep.poll() is None and time.monotonic() - began < moment:
                time.sleep(0.005)
            was_killed = sweep.poll() is None
            if was_killed:
                os.killpg(sweep.pid, signal.SIGKILL)
            sweep.communicate()
            now, epochs_now = finished(folder), epochs(folder)
            assert all(now[name] == stamps for name, stamps in done.items()), "a finished run was done again"
            assert all(epochs_now[name] >= count for name, count in recorded.items()), "an epoch was lost"
            done, recorded = now, epochs_now
            if was_killed:
                moments.append(
                    {
                        "sweep": sweeps,
                        "seconds": round(moment, 2),
                        "finished_runs": len(done),
                        "recorded_epochs": sum(recorded.values()),
                    }
                )
                print(moments[-1], flush=True)
        found = complete(folder, file)
        now = finished(folder)
        assert all(now[name] == stamps for name, stamps in done.items()), "a finished run was done again"
        assert found == expected, [name for name in expected if found.get(name) != expected[name]]
    return {
        "kills": len(moments),
        "sweeps": sweeps,
        "runs_of_a_sweep": len(expected),
        "epochs_of_a_sweep": sum(epochs(scratch / "whole").values()),
        "seconds_of_a_sweep": round(duration, 1),
        "workers": WORKERS,
        "finished_runs_done_again": 0,
        "recorded_epochs_lost": 0,
        "runs_that_differed": 0,
        "moments": moments,
        "grid": GRID.strip().splitlines(),
    }


def main() -> None:
    """Kill, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=0.4, help="time until a kill, in sweeps, at most")
    arguments = parser.parse_args()
    made = provenance("python -m benchmarks.kill_sweep", threads=1)
    with tempfile.TemporaryDirectory() as name:
        result = made | kill_and_compare(arguments.kills, arguments.longest, Path(name))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
