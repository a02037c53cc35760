"""Image files to uint8 tensors, by Pillow (the extra `images`)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dctps.data.tensors import DataError

_CHUNK = 64  # files that a thread takes at a time


def read_images(paths: Sequence[Path], image_size: int | None, *, progress: str = "") -> Tensor:
    """Decode files into uint8 (n, 3, height, width), or (n, 1, height, width) where all are grey images.

    As many threads as torch has do it. `image_size` is the side of the square that `fit` makes of each; with
    None they must be of one size. `progress` names the bar that a terminal shows; empty for none. A file that
    cannot be read, another size, or too little memory, is a DataError.
    """
    from tqdm import tqdm  # noqa: PLC0415 (data of other kinds are read without it)

    size = _size(decode(paths[0], image_size)[0])
    images = _allocate(len(paths), size)
    grey = np.empty(len(paths), np.bool_)

    def read(start: int) -> None:
        for index, path in enumerate(paths[start : start + _CHUNK], start):
            pixels, grey[index] = decode(path, image_size)
            if _size(pixels) != size:
                raise DataError(
                    f"{path} is {'x'.join(map(str, _size(pixels)))} where {paths[0]} is "
                    f"{'x'.join(map(str, size))}: --image-size {min(size)} (image_size) makes them all alike"
                )
            images[index] = pixels.transpose(2, 0, 1)

    starts = range(0, len(paths), _CHUNK)
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        # In the order of the files, so that of several bad ones the first is named.
        hidden = None if progress else True  # None: where there is no terminal
        deque(tqdm(pool.map(read, starts), progress, len(starts), leave=False, disable=hidden), maxlen=0)
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images[:, :1].copy() if grey.all() else images)


def decode(path: Path, image_size: int | None) -> tuple[NDArray[np.uint8], bool]:
    """One image, upright, as red, green and blue, uint8 (height, width, 3), and whether it is a grey one.

    Rotated as its EXIF says; of an animation the first frame; CMYK converted; transparency over white. A file
    that is damaged, no image, or of more than 8 bits per channel, is a DataError.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}: save it with 8 bits per channel")
            grey = image.mode in ("1", "L", "LA")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            return np.asarray(image if image_size is None else fit(image, image_size)), grey
    # Decoders answer damaged files with nearly every kind of exception.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the image {path} ({reason}): replace it or take it away") from error


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Red, green and blue, uint8 (height, width, 3), as grey (height, width, 1): ITU-R 601's luma.

    Where the three are equal it is their value.
    """
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def resize(images: Tensor, image_size: int) -> Tensor:
    """`fit` of every image, uint8 (n, 1 or 3, height, width)."""
    n, channels = images.shape[:2]
    if channels not in (1, 3):
        raise DataError(f"images of {channels} channels are not resized: leave --image-size (image_size) out")
    resized = _allocate(n, (image_size, image_size))[:, :channels]
    for index, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        image = fit(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), image_size)
        resized[index] = np.asarray(image).reshape(image_size, image_size, -1).transpose(2, 0, 1)
    return torch.from_numpy(resized.copy())


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """The largest square in the middle of `image`, cut out and resized with Pillow's bicubic filter.

    Where it shrinks the filter spans as many pixels more, so that nothing aliases.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((image_size, image_size), Image.Resampling.BICUBIC)


def _size(pixels: NDArray[Any]) -> tuple[int, int]:
    """Width and height, as people say it."""
    return pixels.shape[1], pixels.shape[0]


def _allocate(n: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = size
    needed, there = 3 * n * width * height, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise DataError(
            f"{n} images of {width}x{height} take {needed / 2**30:.0f} GiB and this machine has "
            f"{there / 2**30:.0f} GiB of memory: give a smaller --image-size (image_size)"
        )
    return np.empty((n, 3, height, width), np.uint8)
