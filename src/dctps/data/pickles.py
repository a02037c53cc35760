"""From the bytes of a published CIFAR file, of the pickled or the binary version, to pixels and labels.

The caller has compared the file with its published checksum before. Of all that a pickle may name, only what
makes a NumPy array is looked up.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dctps.data.tensors import DataError

PIXELS = 3 * 32 * 32

# By the names that Python 2 wrote. The first is numpy's function for empty arrays, wherever that is today.
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): lambda code, align, copy: np.dtype(code, align=bool(align), copy=bool(copy)),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the name {f'{module} {name}'[:60]!r} has no place there")
        return _KNOWN[module, name]


def read_batch(data: bytes, label_key: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixels (n, 3072) and labels (n,) of one file of the CIFAR "python version"; DataError if it is none.

    It is a protocol 2 pickle of a dictionary, with its labels under b"labels" or b"fine_labels".
    """
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        return np.asarray(batch[b"data"]), np.asarray(batch[label_key])
    except Exception as error:  # a broken pickle raises anything at all
        raise DataError(f"not the pickle of a CIFAR batch ({type(error).__name__}: {error})") from error


def parse_binary(data: bytes, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Records of `label_bytes` labels (the last is the one used: CIFAR-100's fine label) and 3,072 pixels."""
    if len(data) % (label_bytes + PIXELS):
        raise DataError(f"{len(data)} bytes are no whole number of {label_bytes + PIXELS}-byte records")
    records = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + PIXELS)
    return records[:, label_bytes:], records[:, label_bytes - 1]
