"""Kill runs 100 times at random moments and at every operation on their files; compare with one left alone.

    PYTHONPATH=src python -m benchmarks.kill

Two parts. LeNet-5 on the digits gets a SIGKILL from outside at a random moment, is started again, and so on.
A small network is cut short at every opening, write, fsync, rename and deletion of its files in turn: by
SIGKILL, by two kinds of simulated power cut, and by a full disk. Every run must end with the same bytes in
its networks, the same metrics and the same summary, times aside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.support.faults import MODES, every_operation, in_child, outcome

from dctps.experiments.config import RunConfig, to_dict
from dctps.experiments.run import run

RESULT = Path(__file__).parent / "results" / "kill.json"
CONFIG = RunConfig(density=0.05, epochs=8, batch_size=32, augment=True)
INTERVAL = 10


def train(folder: Path) -> None:
    run(CONFIG, out=folder, threads=1, checkpoint_interval=INTERVAL)


def random_kills(kills: int, longest: float, scratch: Path) -> dict[str, Any]:
    """Kill a run at random moments until it is finished, and begin another, until all kills are used up."""
    whole = scratch / "whole"
    train(whole)
    expected = outcome(whole)
    draw = random.Random(0)
    done, runs, most = 0, 0, 0
    while done < kills:
        folder, of_this = scratch / f"run{runs}", 0
        runs += 1
        while not (folder / "summary.json").exists():
            child = os.fork()
            if child == 0:
                train(folder)
                os._exit(0)
            if done < kills:
                time.sleep(draw.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, -signal.SIGKILL), status
            done, of_this = done + (status < 0), of_this + (status < 0)
        # Once more: a run that was killed after its summary has its state still to delete.
        assert in_child(lambda folder=folder: train(folder)) == 0
        assert outcome(folder) == expected, folder
        most = max(most, of_this)
        print(f"run {runs}: {of_this} kills, equal", flush=True)
    return {"kills": done, "runs": runs, "most_kills_of_one_run": most, "runs_that_differed": 0}


def main() -> None:
    """Run both parts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds until a kill, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        result: dict[str, Any] = {
            "config": to_dict(CONFIG),
            "checkpoint_interval": INTERVAL,
            "random_moments": random_kills(arguments.kills, arguments.longest, scratch),
            "every_operation": {},
        }
        for mode in MODES:
            (scratch / "small").mkdir()
            operations = every_operation(mode, scratch / "small")
            print(f"{mode}: {operations} operations, all equal", flush=True)
            result["every_operation"][mode] = {"operations": operations, "runs_that_differed": 0}
            shutil.rmtree(scratch / "small")
    result |= {"torch": torch.__version__, "machine": platform.machine()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
