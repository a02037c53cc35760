"""How long Tiny ImageNet takes to load: decoded, and from the cache, on a made-up folder of its kind.

    python benchmarks/decoding.py --threads 1

Times are also scaled to the 110,000 images of the real one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dctps.benchmarking.record import commit, processor
from dctps.data import load_dataset

CLASSES, EACH, TEST = 10, 500, 200
REAL = 110_000
RESULT = Path(__file__).parent / "results" / "decoding.json"


def main() -> None:
    """Make the folder, load it three times, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch) / "tiny-imagenet-200")
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            load_dataset("tinyimagenet", scratch)
            seconds.append(time.perf_counter() - start)
    images = CLASSES * EACH + TEST
    result = {
        "commit": commit(),
        "cpu": processor(),
        "threads": arguments.threads,
        "images": images,
        "decoded_seconds": round(seconds[0], 2),
        "cached_seconds": round(min(seconds[1:]), 2),
        "decoded_seconds_for_110000": round(seconds[0] * REAL / images, 1),
        "cached_seconds_for_110000": round(min(seconds[1:]) * REAL / images, 1),
    }
    print(json.dumps(result, indent=2))
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


def make(folder: Path) -> None:
    """A folder with the layout and the file sizes (about 2 kB) of Tiny ImageNet's."""
    generator = np.random.default_rng(0)

    def save(path: Path) -> None:
        small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(path, quality=90)

    wnids = [f"n{index:08d}" for index in range(CLASSES)]
    for wnid in wnids:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for index in range(EACH):
            save(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG")
    (folder / "wnids.txt").write_text("\n".join(wnids))
    (folder / "val" / "images").mkdir(parents=True)
    names = [f"val_{index}.JPEG" for index in range(TEST)]
    for name in names:
        save(folder / "val" / "images" / name)
    lines = (f"{name}\t{wnids[index % CLASSES]}\t0\t0\t0\t0" for index, name in enumerate(names))
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
