"""Decoded images beside the files that they were decoded from, so that it is done once."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from torch import Tensor

from dctps.files import sync_folder, write_atomically

_FORMAT = 2
_TENSOR = "images"


def cached(folder: Path, paths: Sequence[Path], image_size: int | None, read: Callable[[], Tensor]) -> Tensor:
    """What `read` makes of the files `paths`, or what an earlier call has kept of it.

    It is kept in `.dctps-images-<size>.safetensors` in `folder`. That file is valid if it was made of files
    of the same names, sizes and times of change in the same order, by the same version of Pillow, and if its
    SHA-256 is right. Otherwise it is written again, whole or not at all. Where the folder cannot be written
    there is no cache, and every call decodes.
    """
    file = folder / f".dctps-images-{image_size or 'unchanged'}.safetensors"
    key = _key(folder, paths, image_size)
    images = _load(file, key)
    if images is None:
        images = read()
        with suppress(OSError):  # nothing depends on the cache but the time that the next call takes
            _save(file, key, images)
    return images


def _key(folder: Path, paths: Sequence[Path], image_size: int | None) -> str:
    digest = hashlib.sha256(repr((_FORMAT, metadata.version("pillow"), image_size)).encode())
    for path in paths:
        status = path.stat()
        digest.update(repr((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _load(file: Path, key: str) -> Tensor | None:
    # Data of other kinds are read without safetensors.
    from dctps.checkpoint import CheckpointError, container  # noqa: PLC0415

    try:
        length = file.stat().st_size
        tensors, fields = container.read(file, length, length)
    except (OSError, CheckpointError):
        return None
    return tensors.get(_TENSOR) if fields.get("key") == key else None


def _save(file: Path, key: str, images: Tensor) -> None:
    from dctps.checkpoint import container  # noqa: PLC0415

    entry = container.Entry(images.dtype, tuple(images.shape), images.detach)
    # A name of its own: several processes may decode the same folder.
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_atomically(temporary, container.write({_TENSOR: entry}, {"key": key}))
        # Whoever may read the images may read the cache.
        temporary.chmod(stat.S_IMODE(file.parent.stat().st_mode) & 0o666)
        temporary.replace(file)
        sync_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
