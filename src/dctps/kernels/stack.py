"""The native kernel of stacked networks: losses and gradients of many on one batch (`csrc/stack/stack.c`)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, raise_failure, strided
from dctps.kernels.layouts import CHUNK, MOST_OPERATIONS, STACK, STACK_LAYER, STACK_OPERATION, Failure, Kind
from dctps.kernels.loader import function

_NO_LAYER = STACK_LAYER.pack(*[0] * (len(STACK_LAYER.names) - 1), -1)  # of operations without weights


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of all networks: a stride of 1 and no padding, or averages over windows side by side.

    It reads and writes channels, rows and columns (a linear layer has one pixel); the window is the kernel or
    the pool.
    """

    kind: Kind
    read: tuple[int, int, int]
    written: tuple[int, int, int]
    window: tuple[int, int] = (1, 1)

    def taps(self) -> Tensor:
        """For each input of an output, in the weight's order, the pixel of its channel's image, int32."""
        c, i, j = (torch.arange(size, dtype=torch.int32, device=CPU) for size in (self.read[0], *self.window))
        return ((c[:, None, None] * self.read[1] + i[:, None]) * self.read[2] + j).flatten()

    @property
    def inputs(self) -> int:
        """Of one output."""
        return self.read[0] * math.prod(self.window)

    def follows(self, before: Operation | None) -> bool:
        """Whether it reads what the one before wrote, and writes what its window leaves of that."""
        (channels, rows, columns), (outputs, *left), (down, across) = self.read, self.written, self.window
        if min(*self.read, *self.written, *self.window) < 1:
            return False
        if self.kind == Kind.WEIGHTED:
            joined = before is None or self.read in (before.written, (math.prod(before.written), 1, 1))
            return joined and left == [rows - down + 1, columns - across + 1]
        if before is None or self.read != before.written:
            return False
        if self.kind == Kind.RELU:
            return before.kind == Kind.WEIGHTED and self.read == self.written
        return outputs == channels and down * left[0] <= rows and across * left[1] <= columns


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One network's layer: W = alpha D + S and b, and where their gradients go. All float32 and contiguous.

    Values are (nnz,), the support int64 (nnz,) (None: all positions), alpha (1,) or None, the offset D, flat,
    or None, and the bias (outputs,) or None. Where a gradient is not needed it is None.
    """

    values: Tensor
    support: Tensor | None
    alpha: Tensor | None
    offset: Tensor | None
    bias: Tensor | None
    grad_values: Tensor | None
    grad_alpha: Tensor | None
    grad_bias: Tensor | None


class StackKernel:
    """Networks laid out for the kernel; it reads and writes their tensors in place, at each call.

    Of at most 64 operations the first is weighted, and the last leaves one pixel for each class. Each network
    has the tensors of its weighted layers in order. What does not fit is a TypeError or a ValueError.
    """

    def __init__(self, operations: Sequence[Operation], networks: Sequence[Sequence[LayerTensors]]) -> None:
        self._operations, self._networks = list(operations), [list(network) for network in networks]
        self._products: Tensor | None = None
        pairs = zip(operations, [None, *operations], strict=False)
        weighted = sum(op.kind == Kind.WEIGHTED for op in operations)
        if (
            not 0 < len(operations) <= MOST_OPERATIONS
            or not all(op.follows(before) for op, before in pairs)
            or operations[-1].written[1:] != (1, 1)
            or any(len(network) != weighted for network in networks)
        ):
            raise ValueError(f"no chain of operations, or not a layer for each weighted one: {operations}")
        self._lay_out()

    def _lay_out(self) -> None:
        """The structs that C reads, and what their addresses point to."""
        self._alive: list[Tensor] = []
        ops, layers = bytearray(), bytearray()
        for op in self._operations:
            taps = self._kept(op.taps()) if op.kind == Kind.WEIGHTED else 0
            ops += STACK_OPERATION.pack(op.kind, *op.read, *op.written, *op.window, taps)
        offsets = (network[0].offset for network in self._networks)
        shared = list({offset.data_ptr(): offset for offset in offsets if offset is not None})
        for network in self._networks:
            mine = iter(network)
            for i, op in enumerate(self._operations):
                layer = next(mine) if op.kind == Kind.WEIGHTED else None
                layers += _NO_LAYER if layer is None else self._packed(op, layer, [] if i else shared)
        self._ops, self._layers, self._offsets = array("q", ops), array("q", layers), array("q", shared)

    def __call__(self, x: Tensor, labels: Tensor, *, backward: bool) -> tuple[Tensor, Tensor]:
        """The losses on a batch of images x, float32 (B, channels, rows, columns), with labels, int64 (B,).

        Of each network the loss in nats summed over the images (float64) and the number of correct answers
        (int64) come back. With `backward`, the gradients of the mean loss over the batch go into their
        tensors. Another dtype or device is a TypeError; other sizes, a label that is no class, or a bad
        support a ValueError.
        """
        x, first, last = strided(x, 4, "the images"), self._operations[0], self._operations[-1]
        images = x.shape[0]
        if math.prod(x.shape[1:]) != math.prod(first.read):
            raise ValueError(f"images of shape {tuple(x.shape[1:])} for networks that read {first.read}")
        blocked, chunks = _in_chunks(x)
        kept: list[Tensor] = []
        product = math.prod(first.written) * CHUNK * chunks * len(self._offsets)
        if self._products is None or self._products.numel() < product:
            self._products = torch.empty(product, dtype=torch.float32, device=CPU)
        count = len(self._networks)
        loss = torch.empty(count, dtype=torch.float64, device=CPU)
        correct = torch.empty(count, dtype=torch.int64, device=CPU)
        call = STACK.pack(
            count, len(self._operations), images, chunks, torch.get_num_threads(), backward, last.written[0],
            self._ops.buffer_info()[0], self._layers.buffer_info()[0], blocked.data_ptr(),
            address(labels, images, "the labels", kept, torch.int64),
            len(self._offsets), self._offsets.buffer_info()[0],
            self._products.data_ptr(), loss.data_ptr(), correct.data_ptr(),
        )  # fmt: skip
        failure = function("stack")(call)
        if failure == Failure.CHANGED:  # a support moved since the layers were laid out
            self._lay_out()
            return self(x, labels, backward=backward)
        if failure:
            raise_failure(failure, f"{count} stacked networks", last.written[0])
        return loss, correct

    def _packed(self, op: Operation, layer: LayerTensors, shared: list[int]) -> bytes:
        outputs, n, taps = op.written[0], op.inputs, math.prod(op.window)
        values, nnz, size = layer.values, layer.values.numel(), outputs * n
        if layer.support is None and (nnz != size or layer.offset is not None):
            raise ValueError(f"{nnz} values without a support in a layer of {size}")
        if layer.offset is not None and layer.alpha is None:
            raise ValueError("D without an alpha")
        live = _in_place(layer.support, nnz, "the support", torch.int64)
        support = _positions(layer.support, size)
        row, entries = support // n, support % n
        order = (entries // taps).argsort(stable=True)
        rows, across = entries % taps // op.window[1], entries % op.window[1]
        readers = torch.stack([order, *(t[order] for t in (row, rows, across))], 1).int()
        offset = _in_place(layer.offset, size, "D")
        return STACK_LAYER.pack(
            nnz, live, 0 if layer.support is None else self._kept(support), self._kept(_starts(row, outputs)),
            self._kept(op.taps()[entries]), self._kept(_starts((entries // taps)[order], op.read[0])),
            self._kept(readers), _in_place(values, nnz, "the values"), _in_place(layer.alpha, 1, "alpha"),
            _in_place(layer.bias, outputs, "the bias"), offset,
            _in_place(layer.grad_values, nnz, "the gradient of the values"),
            _in_place(layer.grad_alpha, 1, "the gradient of alpha"),
            _in_place(layer.grad_bias, outputs, "the gradient of the bias"),
            shared.index(offset) if offset in shared else -1,
        )  # fmt: skip

    def _kept(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


def _in_place(t: Tensor | None, size: int, what: str, dtype: torch.dtype = torch.float32) -> int:
    """The address of a tensor that the kernel will read or write at each call, so that no copy will do."""
    copies: list[Tensor] = []
    at = address(t, size, what, copies, dtype)
    if copies:
        raise ValueError(f"{what} of a stacked layer has to be contiguous")
    return at


def _positions(support: Tensor | None, size: int) -> Tensor:
    """A copy of the support, once it is one; empty for None."""
    if support is None:
        return torch.empty(0, dtype=torch.int64, device=CPU)
    inside = not len(support) or 0 <= int(support[0]) <= int(support[-1]) < size
    if not inside or not bool((support.diff() > 0).all()):
        raise_failure(Failure.BAD_SUPPORT, "a stacked layer", size)
    return support.clone()


def _starts(sorted_rows: Tensor, rows: int) -> Tensor:
    """Where each of the rows begins in their sorted list, and where the last ends; int32."""
    bounds = torch.arange(rows + 1, dtype=torch.int64, device=CPU)
    return torch.searchsorted(sorted_rows, bounds, out_int32=True)


def _in_chunks(x: Tensor) -> tuple[Tensor, int]:
    """A copy, which C can read in vectors: (chunks, numbers of an image, CHUNK), filled up with zeros."""
    rows, chunks = x.flatten(1), -(-len(x) // CHUNK)
    if chunks * CHUNK > len(x):
        rows = torch.cat([rows, rows.new_zeros(chunks * CHUNK - len(x), rows.shape[1])])
    by_chunk = rows.view(chunks, CHUNK, -1).transpose(1, 2)
    return by_chunk.clone(memory_format=torch.contiguous_format), chunks
