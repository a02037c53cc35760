"""One file from the network, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from dctps.data.tensors import DataError

_CHUNK = 1 << 18
_BY_HAND = "fetch the file by other means and put it into the data folder"


def download(
    url: str, path: Path, md5: str, *, size: int | None = None, progress: bool = True, timeout: float = 30.0
) -> None:
    """Fetch `url` into `path`; on any error `path` is left as it was.

    The bytes go to a temporary file beside `path`, which takes its place once size and MD5 are right.

    Args:
        url: what to fetch; redirects and the usual proxy variables are followed.
        path: the file to write; its folder is made.
        md5: the expected checksum, 32 hexadecimal digits.
        size: the expected number of bytes, where known: a server that announces another is refused at once.
        progress: show a progress bar on standard error.
        timeout: seconds without a single byte after which to give up.

    Raises:
        DataError: no server, an HTTP error, a cut-off body, a wrong checksum, or no place to write to.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("x+b")
    except OSError as error:
        raise DataError(f"cannot write to {path.parent} ({error.strerror}): choose another folder") from error
    try:
        with file:
            _fetch(url, file, size, progress, timeout)
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if digest != md5:
            raise DataError(f"{url} has MD5 {digest} instead of {md5}: damaged, or not the published file")
        part.replace(path)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url} answers {error.code} {error.reason}: {_BY_HAND}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot download {url} ({reason}): try again, or {_BY_HAND}") from error
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, file: BinaryIO, size: int | None, progress: bool, timeout: float) -> None:
    """Copy the body of `url` into `file`."""
    request = urllib.request.Request(url, headers={"User-Agent": "dctps"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced else size
        if size is not None and total != size:
            raise DataError(f"{url} announces {total} bytes instead of {size}, another file: {_BY_HAND}")
        name = url.rpartition("/")[2]
        from tqdm import tqdm  # noqa: PLC0415 (data that are there are read without it)

        with tqdm.wrapattr(response, "read", total=total, desc=name, disable=not progress) as body:
            # Of an endless answer one byte more than announced is enough to refuse it.
            while (total is None or file.tell() <= total) and (chunk := body.read(_CHUNK)):
                file.write(chunk)
    file.flush()
    if total is not None and file.tell() != total:
        raise DataError(f"{url} was cut off at {file.tell()} of {total} bytes: try again, or {_BY_HAND}")
