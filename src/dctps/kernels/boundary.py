"""What crosses from Python to C, and back: tensors' addresses, once they are checked; calls; and failures.

C trusts what it is given: every tensor of a call passes `address`, which compares its dtype, device, layout and
number of entries with what C will read there. What only a walk over the entries can tell (a support in order,
frequencies that exist) C checks where it walks anyway, and returns a `Failure`.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from dctps.kernels.layouts import Failure

CPU = torch.device("cpu")
SERIAL = 1 << 15  # numbers below which one thread does it all


class SupportError(ValueError):
    """A support that is not ascending positions in the weight."""


def address(t: Tensor | None, size: int, what: str, dtype: torch.dtype = torch.float32) -> int:
    """Where the numbers of a tensor lie, once it is what C takes it for; 0 for None.

    Args:
        t: contiguous, on the CPU.
        size: how many numbers C will take it to have.
        what: it is, for the error.
        dtype: that C will take it to have.

    Raises:
        TypeError: another dtype or device, or a tensor without numbers of its own.
        ValueError: another number of entries, or gaps between them.
    """
    if t is None:
        return 0
    if t.dtype is dtype and t.is_cpu and t.numel() == size and t.is_contiguous() and not t.is_neg():
        at = t.data_ptr()
        if at or not size:
            return at
    refuse(t, what, f"{size} contiguous numbers", dtype)


def own(t: Tensor | None) -> int:
    """Where the numbers lie of a tensor that was allocated for the call; 0 for None."""
    return 0 if t is None else t.data_ptr()


def strided(t: Tensor, dims: int, what: str) -> Tensor:
    """A float32 tensor on the CPU, of any strides, whose numbers are what lies in memory.

    Args:
        t: any.
        dims: how many it has to have.
        what: it is, for the error.

    Raises:
        TypeError: another dtype, device or layout.
        ValueError: another number of dimensions.
    """
    if t.dtype is not torch.float32 or not t.is_cpu or t.dim() != dims or t.layout is not torch.strided:
        refuse(t, what, f"numbers in {dims} dimensions", torch.float32)
    return t.clone() if t.is_neg() or t._is_zerotensor() else t


def check_shape(t: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Compare a tensor's shape.

    Raises:
        ValueError: it has another.
    """
    if t.shape != shape:
        raise ValueError(f"{what} has the shape {tuple(t.shape)}, not {shape}")


def refuse(t: Tensor, what: str, wanted: str, dtype: torch.dtype) -> NoReturn:
    """Say what is wrong with a tensor."""
    kind = TypeError if t.dtype != dtype or not t.is_cpu or t.layout != torch.strided else ValueError
    raise kind(
        f"{what}: the native kernel takes {wanted} of {dtype} on the CPU, got {tuple(t.shape)} of {t.dtype} on "
        f"{t.device}, {'contiguous' if t.layout == torch.strided and t.is_contiguous() else 'not contiguous'}"
    )


def threads_for(numbers: int, serial: int = SERIAL) -> int:
    """How many threads share out a call that reads and writes so many numbers."""
    return torch.get_num_threads() if numbers > serial else 1


def raise_failure(failure: int, what: str, size: int) -> NoReturn:
    """Raise the exception that a kernel's return stands for.

    Args:
        failure: not 0.
        what: was computed.
        size: of the weight.
    """
    match Failure(failure):
        case Failure.NO_MEMORY:
            raise MemoryError(f"no memory for the scratch of {what}")
        case Failure.BAD_SUPPORT:
            raise SupportError(
                f"the support is not sorted positions in 0..{size - 1}, each of them once: was it averaged, cast, "
                f"copied by hand, or never filled? (in {what})"
            )
        case Failure.TOO_LARGE:
            raise ValueError(f"too large for the native kernel's 32-bit indices: {what}; use another backend")
        case Failure.BAD_LABEL:
            raise ValueError(f"a label is not one of the classes: {what}")
        case _:
            raise ValueError(f"D's tables name entries that there are not: {what}")
