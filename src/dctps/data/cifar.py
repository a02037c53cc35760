"""CIFAR-10 and CIFAR-100 from their published files, unpacked or still in their archives.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; files from
https://www.cs.toronto.edu/~kriz/cifar.html, in the "python version" or the "binary version". A file is read
up to its published size, then its MD5 is compared, and only then is anything parsed; an archive is checked as
a whole first, then each file in it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dctps.data.download import download as download_file
from dctps.data.pickles import PIXELS, parse_binary, read_batch
from dctps.data.registry import register_dataset
from dctps.data.tensors import DataError, Dataset, Description, ImageTensors

BASE_URL = "https://www.cs.toronto.edu/~kriz/"

_REMEDY = "point --data-dir or DCTPS_DATA at the folder that holds it, or add --download to fetch it there"
_REPLACE = "delete it and fetch it again (--download)"

_md5 = partial(hashlib.md5, usedforsecurity=False)


@dataclass(frozen=True)
class PublishedFile:
    """A file as published: its name, its exact size in bytes, its MD5, and how many images it holds."""

    name: str
    size: int
    md5: str
    images: int = 0

    def check(self, size: int, digest: Callable[[], str], where: str) -> None:
        """Compare the size, then the MD5, of what was read at `where`; DataError if they differ."""
        if size < self.size:
            raise DataError(f"{where} is cut off, {size} of {self.size} bytes: {_REPLACE}")
        if size > self.size:
            raise DataError(f"{where} is longer than the published {self.size} bytes: {_REPLACE}")
        if (md5 := digest()) != self.md5:
            raise DataError(f"{where} is damaged, its MD5 is {md5} instead of {self.md5}: {_REPLACE}")

    def read(self, file: IO[bytes], where: str) -> bytes:
        """All of the file, but never more than one byte past its published size; errors as of `check`."""
        data = file.read(self.size + 1)
        self.check(len(data), _md5(data).hexdigest, where)
        return data


@dataclass(frozen=True)
class Layout:
    """One published version: its folder, the archive that unpacks to it, its files, and how to parse one.

    `parse` turns the bytes of a file into pixels (n, 3072) and labels (n,).
    """

    folder: str
    archive: PublishedFile
    train: tuple[PublishedFile, ...]
    test: tuple[PublishedFile, ...]
    parse: Callable[[bytes], tuple[NDArray[Any], NDArray[Any]]]

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """Training files, then test files."""
        return self.train + self.test

    def missing_in(self, folder: Path) -> list[str]:
        """Names of the files that the unpacked folder lacks."""
        return [file.name for file in self.files if not (folder / file.name).is_file()]


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets; `layouts[0]` is the version that is downloaded."""

    name: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layouts: tuple[Layout, ...]


# Checksums: of the archives, from the source's page; of the python version's files, those that torchvision
# checks; of CIFAR-10's .bin files and CIFAR-100's test.bin, computed from the python files, which fix every
# byte; of CIFAR-100's train.bin, from the public Go package rai-project/dldataset, whose checksum of test.bin
# is the computed one.
CIFAR10 = Cifar(
    "cifar10",
    10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    layouts=(
        Layout(
            "cifar-10-batches-py",
            PublishedFile("cifar-10-python.tar.gz", 170498071, "c58f30108f718f92721af3b95e74349a"),
            train=(
                PublishedFile("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f", 10000),
                PublishedFile("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec", 10000),
                PublishedFile("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751", 10000),
                PublishedFile("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a", 10000),
                PublishedFile("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb", 10000),
            ),
            test=(PublishedFile("test_batch", 31035526, "40351d587109b95175f43aff81a1287e", 10000),),
            parse=partial(read_batch, label_key=b"labels"),
        ),
        Layout(
            "cifar-10-batches-bin",
            PublishedFile("cifar-10-binary.tar.gz", 170052171, "c32a1d4ab5d03f1284b67883e8d87530"),
            train=(
                PublishedFile("data_batch_1.bin", 30730000, "5dd7e06a14cb22eb9f671a540d1b7c25", 10000),
                PublishedFile("data_batch_2.bin", 30730000, "5ea93a67294ea407fff1d09f752e9692", 10000),
                PublishedFile("data_batch_3.bin", 30730000, "942cd6a4bcdd0dd3c604fbe906cb4421", 10000),
                PublishedFile("data_batch_4.bin", 30730000, "ae636b3ba5c66a11e91e8cb52e771fcb", 10000),
                PublishedFile("data_batch_5.bin", 30730000, "53f37980c15c3d472c316c40844f3f0d", 10000),
            ),
            test=(PublishedFile("test_batch.bin", 30730000, "803d5f7f4d78ea53de84dbe85f74fb6d", 10000),),
            parse=partial(parse_binary, label_bytes=1),
        ),
    ),
)

CIFAR100 = Cifar(
    "cifar100",
    100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    layouts=(
        Layout(
            "cifar-100-python",
            PublishedFile("cifar-100-python.tar.gz", 169001437, "eb9058c3a382ffc7106e4002c42a8d85"),
            train=(PublishedFile("train", 155249918, "16019d7e3df5f24257cddd939b257f8d", 50000),),
            test=(PublishedFile("test", 31049707, "f0ef6b0ae62326f3e7ffdfab6717acfc", 10000),),
            parse=partial(read_batch, label_key=b"fine_labels"),
        ),
        Layout(
            "cifar-100-binary",
            PublishedFile("cifar-100-binary.tar.gz", 168513733, "03b5dce01913d631647c71ecec9e9cb8"),
            train=(PublishedFile("train.bin", 153700000, "6172c7755cfe09b2fe270c85cebc1b15", 50000),),
            test=(PublishedFile("test.bin", 30740000, "4499cfba6c016c1be1438163640a0898", 10000),),
            parse=partial(parse_binary, label_bytes=2),
        ),
    ),
)


@register_dataset("cifar10", Description(classes=10, channels=3, image_size=32), published=True)
def load_cifar10(data_dir: Path | None, download: bool = False) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32), 10 classes; see `load_cifar`."""
    return load_cifar(CIFAR10, data_dir, download)


@register_dataset("cifar100", Description(classes=100, channels=3, image_size=32), published=True)
def load_cifar100(data_dir: Path | None, download: bool = False) -> Dataset:
    """CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images; see `load_cifar`."""
    return load_cifar(CIFAR100, data_dir, download)


def load_cifar(
    spec: Cifar, data_dir: Path | None, download: bool = False, *, base_url: str = BASE_URL
) -> Dataset:
    """Load from the first complete version in a folder: unpacked folders first, then archives.

    `data_dir` holds the published folders or archives, or is one of them. With `download`, the archive of the
    python version is fetched from `base_url` if no version there is complete. Without a folder, with nothing
    complete in it, a damaged file or a failed download, that is a DataError.
    """
    if data_dir is None:
        wanted = ", ".join(f"{layout.folder}/ or {layout.archive.name}" for layout in spec.layouts)
        raise DataError(f"{spec.name} needs a data folder (for {wanted}): give --data-dir or set DCTPS_DATA")
    try:
        contents = _find(spec, data_dir)
        if contents is None and download:
            archive = spec.layouts[0].archive
            download_file(base_url + archive.name, data_dir / archive.name, archive.md5, size=archive.size)
            contents = _find(spec, data_dir)
        if contents is None:
            raise DataError(_nothing_found(spec, data_dir))
    except OSError as error:
        raise DataError(f"cannot look into {data_dir} ({error.strerror}): {_REMEDY}") from error
    layout, read = contents
    return _assemble(spec, layout, read)


def _find(spec: Cifar, data_dir: Path) -> tuple[Layout, Iterator[tuple[PublishedFile, bytes]]] | None:
    for layout in spec.layouts:
        for folder in (data_dir / layout.folder, data_dir):
            if not layout.missing_in(folder):
                return layout, _read_folder(layout, folder)
    for layout in spec.layouts:
        path = data_dir if data_dir.name == layout.archive.name else data_dir / layout.archive.name
        if path.is_file():
            return layout, _read_archive(layout, path)
    return None


def _nothing_found(spec: Cifar, data_dir: Path) -> str:
    if not data_dir.is_dir():
        return f"there is no data folder {data_dir}: {_REMEDY}"
    looked = []
    for layout in spec.layouts:
        folder = f"{layout.folder}/"
        if (data_dir / layout.folder).is_dir():
            folder += f" (which lacks {', '.join(layout.missing_in(data_dir / layout.folder))})"
        looked.append(f"{folder} or {layout.archive.name}")
    return f"{spec.name} is not in {data_dir}, where it would be {' or '.join(looked)}: {_REMEDY}"


def _read_folder(layout: Layout, folder: Path) -> Iterator[tuple[PublishedFile, bytes]]:
    for published in layout.files:
        path = folder / published.name
        try:
            with path.open("rb") as file:
                yield published, published.read(file, str(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_archive(layout: Layout, path: Path) -> Iterator[tuple[PublishedFile, bytes]]:
    """The layout's files in the archive's order, in one pass; nothing is unpacked to the disk."""
    wanted = {f"{layout.folder}/{published.name}": published for published in layout.files}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            layout.archive.check(size, lambda: hashlib.file_digest(file, _md5).hexdigest(), str(path))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r|gz") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.name in wanted else None
                    if content is not None:
                        published = wanted.pop(member.name)
                        yield published, published.read(content, f"{member.name} in {path}")
                    if not wanted:
                        break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if wanted:
        raise DataError(f"{path} lacks {', '.join(wanted)}: {_REPLACE}")


def _assemble(spec: Cifar, layout: Layout, contents: Iterator[tuple[PublishedFile, bytes]]) -> Dataset:
    parsed = {published.name: _parse(spec, layout, published, data) for published, data in contents}

    def joined(files: tuple[PublishedFile, ...]) -> ImageTensors:
        parts = zip(*(parsed[file.name] for file in files), strict=True)
        pixels, labels = (torch.from_numpy(np.concatenate(part)) for part in parts)
        return ImageTensors(pixels.view(-1, 3, 32, 32), labels.long())

    train, test = joined(layout.train), joined(layout.test)
    return Dataset(spec.name, train, test, spec.classes, spec.mean, spec.std, flip=True)


def _parse(
    spec: Cifar, layout: Layout, published: PublishedFile, data: bytes
) -> tuple[NDArray[Any], NDArray[Any]]:
    where = f"{published.name} of {spec.name}"
    try:
        pixels, labels = layout.parse(data)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    n = published.images
    if pixels.shape != (n, PIXELS) or labels.shape != (n,):
        found = f"pixels {pixels.shape} and labels {labels.shape}"
        raise DataError(f"{where} holds {found} instead of {n} images")
    if not 0 <= labels.min() <= labels.max() < spec.classes:
        raise DataError(f"{where} has labels outside 0..{spec.classes - 1}")
    return pixels, labels
