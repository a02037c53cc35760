"""Train four LeNet-5 on the digits and compare what each of them trains, keeps in memory and stores.

    python examples/demo.py [--epochs 12] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from dctps.experiments import RunConfig
from dctps.experiments.run import run

NETWORKS = {
    "DCTpS": RunConfig(method="dctps", density=0.01),
    "sDCTpS": RunConfig(method="sdctps", density=0.01),
    "Random (EPL)": RunConfig(method="random-epl", density=0.01),
    "dense": RunConfig(method="dense"),
}
