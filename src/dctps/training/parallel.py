"""Data parallel training: every process takes its share of each batch, and they add up their gradients.

All processes hold the same network and draw the same batches, so that nothing but gradients and a few sums
of each step goes between them. The gradients are those of the trained numbers alone: O(nnz).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class PeerLost(RuntimeError):  # noqa: N818
    """Another process of the run has ended; its own message says why."""


class PeerError(ValueError):
    """An error of any of the processes, raised in all of them."""


class Processes:
    """The processes of a run; by default this one alone.

    Attributes:
        rank: of this one, from 0.
        count: of them.
        bytes_sent: that this process has handed to collective operations, so far.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count, self.bytes_sent = rank, count, 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: as equal as can be, the first ones larger; it may be empty."""
        return batch.tensor_split(self.count)[self.rank]

    def add_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over the processes, in one operation."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for dtype in sorted({g.dtype for g in gradients}, key=str):
            same = [g for g in gradients if g.dtype == dtype]
            flat = torch.cat([g.reshape(-1) for g in same])
            self.add_(flat)
            for gradient, total in zip(same, flat.split([g.numel() for g in same]), strict=True):
                gradient.copy_(total.reshape(gradient.shape))

    def add_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        self.bytes_sent += tensor.nbytes
        with _peers():
            dist.all_reduce(tensor)

    def sums(self, *numbers: Tensor) -> Tensor:
        """The sum over the processes of each number, float64, where the numbers are."""
        packed = torch.stack([number.double() for number in numbers])
        if self.count > 1:
            self.add_(packed)
        return packed

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return max(self._gathered(number))

    def average_statistics_(self, model: nn.Module) -> None:
        """Replace the floating-point buffers, such as BatchNorm's statistics, by their means."""
        if self.count > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    self.add_(buffer)
                    buffer.div_(self.count)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of any process in all; in all but the first that failed as a `PeerError`."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        lines = self._gathered(None if failure is None else str(failure))
        first = next((rank for rank, line in enumerate(lines) if line is not None), None)
        if failure is not None and first == self.rank:
            raise failure
        if first is not None:
            raise PeerError(f"process {first}: {lines[first]}")

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in process 0, which alone calls it; its errors are a `PeerError` elsewhere."""
        made: list[T | None] = [None]
        with self.together():
            if self.rank == 0:
                made[0] = make()
        if self.count > 1:
            with _peers():
                dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    def check_same(self, model: nn.Module) -> None:
        """Raise a `PeerError` unless all processes start from the same network, bit for bit."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        digests = self._gathered(digest.hexdigest())
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise PeerError(
                f"processes {others} built another network than process 0: "
                f"give every process the same command and the same versions of dctps and torch"
            )

    def _gathered(self, value: T) -> list[T]:
        """The values of all processes."""
        found = [value] * self.count
        if self.count > 1:
            with _peers():
                dist.all_gather_object(found, value)
        return found


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that `torchrun` started, joined over gloo (CPU) or nccl (CUDA); else this one alone.

    Raises:
        PeerLost: another process ended while this one waited for it.
    """
    count = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if count == 1:
        yield Processes()
        return
    if dist.is_initialized():  # a level of a run, whose processes are joined already
        yield Processes(dist.get_rank(), count)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _peers():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run has ended: its message says why") from error
