"""Read the published CIFAR pickles: of all that a file may name, only what makes a NumPy array is looked up.

Whoever calls this has compared the file with its published checksum before.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dctps.data.tensors import DataError

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


def read_batch(data: bytes, label_key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels and labels of one batch file of the CIFAR "python version".

    Args:
        data: the file, a protocol 2 pickle of a dictionary as Python 2 wrote it.
        label_key: b"labels" or b"fine_labels".

    Returns:
        Pixels, uint8, (n, row length); labels, int64, (n,).

    Raises:
        DataError: it is no such pickle.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[label_key]
    except Exception as error:  # a broken pickle raises anything at all
        raise DataError(f"not the pickle of a CIFAR batch ({type(error).__name__}: {error})") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise DataError("not the pickle of a CIFAR batch ('data' is no 2-D array of uint8)")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError("not the pickle of a CIFAR batch (the labels are no list of integers)")
    return pixels, np.array(labels, np.int64)
