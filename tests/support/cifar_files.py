"""Small CIFAR-like files in the published formats, written independently of the readers under test."""

import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from dctps.data.cifar import CIFAR10, CIFAR100, Cifar, Layout, PublishedFile


def python2_pickle(pixels: np.ndarray, **lists: list) -> bytes:
    """A batch as Python 2's cPickle (protocol 2) wrote it: str keys, a uint8 array, lists of int or str."""
    memo = 0

    def put() -> bytes:
        nonlocal memo
        memo += 1
        return b"q" + bytes([memo]) if memo < 256 else b"r" + struct.pack("<I", memo)

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text + put()

    out = [b"\x80\x02}", put(), b"("]
    for key, values in lists.items():
        out += [string(key.encode()), b"]", put(), b"("]
        out += [string(v) if isinstance(v, bytes) else b"K" + bytes([v]) for v in values]
        out += [b"e"]
    out += [string(b"data"), b"cnumpy.core.multiarray\n_reconstruct\n", put(), b"cnumpy\nndarray\n", put()]
    out += [b"K\x00\x85U\x01b\x87R", put(), b"(K\x01M", struct.pack("<H", len(pixels)), b"M\x00\x0c\x86"]
    out += [b"cnumpy\ndtype\n", put(), b"U\x02u1K\x00K\x01\x87R", put()]
    out += [b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T", struct.pack("<I", pixels.size)]
    out += [pixels.tobytes(), b"tbu."]
    return b"".join(out)


def images(seed: int, count: int, classes: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count).tolist()


def file_bytes(layout: Layout, seed: int, count: int, classes: int) -> bytes:
    pixels, labels = images(seed, count, classes)
    names = [b"picture_%d.png" % i for i in range(count)]
    coarse = [label // 5 for label in labels]
    match layout.folder:
        case "cifar-10-batches-py":
            return python2_pickle(pixels, labels=labels, filenames=names)
        case "cifar-100-python":
            return python2_pickle(pixels, filenames=names, fine_labels=labels, coarse_labels=coarse)
        case "cifar-10-batches-bin":
            return b"".join(bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        case "cifar-100-binary":
            columns = zip(pixels, coarse, labels, strict=True)
            return b"".join(bytes([c, y]) + x.tobytes() for x, c, y in columns)
    raise AssertionError(layout.folder)


def published(name: str, data: bytes, count: int = 0) -> PublishedFile:
    return PublishedFile(name, len(data), hashlib.md5(data).hexdigest(), count)


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def small(real: Cifar, per_file: int = 3) -> tuple[Cifar, dict[str, bytes], dict[str, bytes]]:
    """The real data set's layouts with `per_file` random images a file.

    Both versions hold the same images. Returns the specification with its true sizes and checksums, the
    unpacked files by path, and the archives by name, each archive's members in reverse order.
    """
    layouts, unpacked, archives = [], {}, {}
    for layout in real.layouts:
        contents = {
            file.name: file_bytes(layout, seed, per_file, real.classes)
            for seed, file in enumerate(layout.files)
        }
        members = {f"{layout.folder}/{name}": data for name, data in contents.items()}
        extra = {f"{layout.folder}/readme.html": b"<html>"}
        archive = tar_gz(extra | dict(reversed(members.items())))
        unpacked |= members
        archives[layout.archive.name] = archive
        layouts.append(
            replace(
                layout,
                archive=published(layout.archive.name, archive),
                train=tuple(published(f.name, contents[f.name], per_file) for f in layout.train),
                test=tuple(published(f.name, contents[f.name], per_file) for f in layout.test),
            )
        )
    return replace(real, layouts=tuple(layouts)), unpacked, archives


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


SMALL10 = small(CIFAR10)
SMALL100 = small(CIFAR100)
