"""What an installation weighs, and how long one waits for it: `python benchmarks/install.py`.

Run it with the Python of an environment that a wheel was installed into. The least of many times is given:
other work on the machine only adds.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

TIMES = 20
COMMANDS = {
    "import dctps": ["-c", "import dctps"],
    "dctps --help": ["-m", "dctps", "--help"],
    "import torch": ["-c", "import torch"],
    "a Python that does nothing": ["-c", ""],
}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """The least time of a new process, and the least that it takes of a processor."""
    waited, used = [], []
    for _ in range(TIMES):
        begin, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=Path.home())
        after = os.times()
        waited.append(time.perf_counter() - begin)
        used.append(sum(after[2:4]) - sum(before[2:4]))
    return min(waited), min(used)


def main() -> None:
    """One line for each figure."""
    files = [Path(file.locate()) for file in importlib.metadata.files("dctps") or ()]
    own = [path for path in files if path.suffix != ".pyc"]
    print(f"installed: {sum(path.stat().st_size for path in own) / 1e6:.1f} MB in {len(own)} files")
    for name, arguments in COMMANDS.items():
        print("{}: {:.2f} s, {:.2f} s of a processor".format(name, *seconds(arguments)))


if __name__ == "__main__":
    main()
