"""What crosses from Python to C and back: tensors' addresses, once they are checked, and failures.

C trusts what it is given: every tensor of a call passes `address` or `strided`, which compare its dtype,
device and size with what C will read there. What only a walk over the numbers can tell (a support in order,
frequencies that exist) C checks where it walks anyway, and returns a `Failure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from dctps.kernels.layouts import Failure

CPU = torch.device("cpu")


class SupportError(ValueError):
    """A support that is not ascending positions in the weight."""


def address(
    t: Tensor | None, size: int, what: str, kept: list[Tensor], dtype: torch.dtype = torch.float32
) -> int:
    """Where the numbers of a tensor lie, once it is what C takes it for; 0 for None.

    C takes it for `size` contiguous numbers of `dtype`. Where that takes a copy, `kept` holds it until the
    call is over; `what` names the tensor in the error. Another dtype, device or layout is a TypeError,
    another number of entries a ValueError.
    """
    if t is None:
        return 0
    if t.dtype is dtype and t.is_cpu and t.numel() == size and t.layout is torch.strided:
        if not t.is_contiguous() or t.is_neg():
            t = t.resolve_neg().contiguous()
            kept.append(t)
        at = t.data_ptr()
        if at or not size:
            return at
    raise _refusal(t, what, f"{size} numbers", dtype)


def strided(t: Tensor, dims: int, what: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of `dtype`, of `dims` dimensions on the CPU, of any strides, without a pending negation.

    Another dtype, device or layout is a TypeError, another number of dimensions a ValueError.
    """
    if t.dtype is not dtype or not t.is_cpu or t.layout is not torch.strided or t.dim() != dims:
        raise _refusal(t, what, f"numbers in {dims} dimensions", dtype)
    return t.resolve_neg() if t.is_neg() else t


def readable(t: Tensor) -> torch.dtype:
    """The dtype that rows and images have to be of: bfloat16 where they are, else float32."""
    return torch.bfloat16 if t.dtype is torch.bfloat16 else torch.float32


def start_of(t: Tensor, what: str) -> int:
    """Where the numbers of a tensor that is not empty lie; ValueError for torch's symbolic zeros."""
    if not (at := t.data_ptr()):
        raise _refusal(t, what, "numbers in memory", t.dtype)
    return at


def new_float32(shape: Sequence[int]) -> Tensor:
    """A tensor for what C writes."""
    return torch.empty(shape, dtype=torch.float32, device=CPU)


def zero_(*grads: Tensor | None) -> None:
    """Fill gradients with zeros, those that are wanted."""
    for grad in grads:
        if grad is not None:
            grad.zero_()


def threads_for(numbers: int, serial: int = 1 << 15) -> int:
    """How many threads share out a call that reads and writes so many numbers: one for at most `serial`."""
    return torch.get_num_threads() if numbers > serial else 1


def raise_failure(failure: int, what: str, size: int) -> NoReturn:
    """Raise the exception that a kernel's return stands for; `what` was computed, `size` is the weight's."""
    if failure == Failure.NO_MEMORY:
        raise MemoryError(f"no memory for the scratch of {what}")
    if failure == Failure.BAD_SUPPORT:
        raise SupportError(
            f"the support is not sorted positions in 0..{size - 1}, each of them once (in {what}): was it "
            "averaged, cast, copied by hand, or never filled?"
        )
    raise ValueError(f"{_MEANINGS[Failure(failure)]}: {what}")


_MEANINGS = {
    Failure.BAD_TABLE: "D's tables name entries that there are not",
    Failure.BAD_WINDOW: "the kernel does not fit the images",
    Failure.BAD_LABEL: "a label is not one of the classes",
    Failure.CHANGED: "a support changed while it was read",
    Failure.TOO_LARGE: 'too large for the 32-bit indices of native code, choose backend="dense"',
}


def _refusal(t: Tensor, what: str, wanted: str, dtype: torch.dtype) -> Exception:
    """What is wrong with a tensor."""
    kind = TypeError if t.dtype != dtype or not t.is_cpu or t.layout != torch.strided else ValueError
    return kind(
        f"{what}: native code takes {wanted} of {dtype} on the CPU, got {tuple(t.shape)} of {t.dtype} on "
        f"{t.device}, {t.layout}"
    )
