"""Folders of images for tests, each pixel drawn from a seed."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def classes_folder(root: Path, counts: dict[str, int], size: int = 8) -> Path:
    """A folder for each class with that many random PNG images."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            write(root / name / f"{index}.png", pixels(100 * label + index, size, size, 3))
    return root


def tiny_imagenet(
    root: Path, wnids: tuple[str, ...] = ("n03", "n01", "n02"), each: int = 3, val: int = 4
) -> Path:
    """The published layout with few classes and images: labels in the order of `wnids`."""
    folder = root / "tiny-imagenet-200"
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tsalamander\nn99\tnothing\n")
    for label, wnid in enumerate(wnids):
        names = [f"{wnid}_{index}.JPEG" for index in range(each)]
        for index, name in enumerate(names):
            write(folder / "train" / wnid / "images" / name, pixels(100 * label + index, 64, 64, 3))
        boxes = "".join(f"{name}\t0\t10\t63\t58\n" for name in names)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    lines = []
    for index in range(val):
        write(folder / "val" / "images" / f"val_{index}.JPEG", pixels(1000 + index, 64, 64, 3))
        lines.append(f"val_{index}.JPEG\t{wnids[(index * 2) % len(wnids)]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    for index in range(2):
        write(folder / "test" / "images" / f"test_{index}.JPEG", pixels(2000 + index, 64, 64, 3))
    return folder


LABELS = np.arange(60) % 3


def bars(n=60, seed=0):
    """Images that tell their class by the place of a bar."""
    images = pixels(seed, n, 32, 32) // 4
    for image, label in zip(images, LABELS[:n], strict=True):
        image[:, 10 * label : 10 * label + 8] = 250
    return images, LABELS[:n]


QUICK = ["--density", "0.05", "--epochs", "1", "--threads", "1", "--no-progress"]
