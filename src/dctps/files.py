"""Write a file so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, force it to the disk, and rename it to `path`.

    When this returns, `content` outlives a power cut. Cut short at any moment, `path` holds all of the old
    content or all of the new one, and at most the temporary file `.<name>.tmp` is left over; the next call
    replaces that. One process at a time may write a given path.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # A file of its own: one that was put in its place could be a link to somewhere else.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is on the disk only once the folder is.
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it where they are missing, each on the disk before the next.

    Raises:
        OSError: one cannot be made, or something there is no folder.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force the names in the folder `path` to the disk.

    Raises:
        OSError: the folder cannot be read, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
