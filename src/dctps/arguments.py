"""Numbers that a user passes, as Python's own: NumPy and torch have numbers that JSON cannot hold."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

NO_WEIGHTS = (
    "density 0 trains no weight, and without an offset every layer is then zero: choose a density above 0, "
    "or an offset such as 'dct'"
)


def whole(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number as an `int`.

    Args:
        name: of the argument, for the message.
        value: a whole number of Python, NumPy or torch (a tensor without axes).
        least: the smallest that is allowed (None: there is none).

    Raises:
        ValueError: another type (also a bool, and a float such as 1.0), or a smaller number.
    """
    number = _plain(value)
    if isinstance(number, bool) or not hasattr(number, "__index__") or hasattr(number, "shape"):
        raise ValueError(f"{name} must be a whole number, got {_shown(value)}")
    number = operator.index(number)
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def real(name: str, value: Any, *, finite: bool = True) -> float:
    """A number as a `float`; of one in single precision its shortest decimal, so 0.1 stays 0.1.

    Args:
        name: of the argument, for the message.
        value: a number of Python, NumPy or torch (a tensor without axes).
        finite: whether nan and infinities are refused here, and not by the caller's own limits.

    Raises:
        ValueError: another type (also a bool or a text), or what `finite` refuses.
    """
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, Real) or (finite and not math.isfinite(number)):
        raise ValueError(f"{name} must be a{' finite' * finite} number, got {_shown(value)}")
    return float(number)


def flag(name: str, value: Any) -> bool:
    """True or False as a `bool`.

    Args:
        name: of the argument, for the message.
        value: a bool of Python, NumPy or torch (a tensor without axes).

    Raises:
        ValueError: another type: of a text or a number it is not clear what is meant.
    """
    if not isinstance(found := _plain(value), bool):
        raise ValueError(f"{name} must be True or False, got {_shown(value)}")
    return found


def _plain(value: Any) -> Any:
    """The number in a scalar of NumPy, an array or a tensor without axes; anything else as it is."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item") or getattr(value, "is_meta", False):
        return value
    number = value.item()
    if isinstance(number, float) and value.dtype.itemsize < 8 and math.isfinite(number):
        import numpy as np  # noqa: PLC0415 (it is not needed for numbers of Python)

        return float(str(np.float32(number)))
    return number


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
