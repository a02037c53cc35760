"""The native kernel of stacked networks: losses and gradients of many on one batch (`csrc/stack.c`)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from dctps.kernels.loader import function

CHUNK = 64  # images that are side by side in memory
MOST_OPERATIONS = 64


class Kind(IntEnum):
    """What an operation does; `RELU` follows a weighted one."""

    WEIGHTED = 0
    RELU = 1
    POOL = 2


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of all networks: a stride of 1 and no padding, or averages over windows side by side.

    Attributes:
        kind: what it does.
        read: channels, rows and columns of what goes in; a linear layer has one pixel.
        written: of what comes out.
        window: rows and columns of the kernel, or of the pool.
    """

    kind: Kind
    read: tuple[int, int, int]
    written: tuple[int, int, int]
    window: tuple[int, int] = (1, 1)

    def taps(self) -> Tensor:
        """For each input of an output, in the weight's order, the pixel of its channel's image, int32."""
        c, i, j = (torch.arange(size) for size in (self.read[0], *self.window))
        at = (c[:, None, None] * self.read[1] + i[:, None]) * self.read[2] + j
        return at.flatten().int()


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One network's layer: W = alpha D + S and b, and where their gradients go. All float32 and contiguous.

    Attributes:
        values: (nnz,), of S.
        support: int64 (nnz,), sorted flat positions; None: all.
        alpha: (1,), or None without D.
        offset: D, flat, or None.
        bias: (outputs,) or None.
        d_values: of the values, or None where not needed; so are the others.
        d_alpha: see `d_values`.
        d_bias: see `d_values`.
    """

    values: Tensor
    support: Tensor | None
    alpha: Tensor | None
    offset: Tensor | None
    bias: Tensor | None
    d_values: Tensor | None
    d_alpha: Tensor | None
    d_bias: Tensor | None


class StackKernel:
    """Networks laid out for the kernel; it reads and writes their tensors in place, at each call.

    Args:
        operations: the first is weighted, at most 64.
        networks: of each, the tensors of its weighted layers in order.
    """

    def __init__(self, operations: Sequence[Operation], networks: Sequence[Sequence[LayerTensors]]) -> None:
        self._count, self._operations = len(networks), list(operations)
        self._alive: list[Tensor] = []  # what addresses below point to
        self._products: Tensor | None = None
        ops = array("q")
        for op in operations:
            taps = op.taps() if op.kind == Kind.WEIGHTED else None
            ops.extend((op.kind, *op.read, *op.written, *op.window, self._address(taps)))
        self._ops = ops
        self._offsets = self._shared(networks)
        shared = {address: i for i, address in enumerate(self._offsets)}
        layers = array("q")
        for network in networks:
            mine = iter(network)
            for i, op in enumerate(operations):
                layer = next(mine) if op.kind == Kind.WEIGHTED else None
                layers.extend(
                    (0,) * 13 + (-1,) if layer is None else self._packed(op, layer, shared if not i else {})
                )
        self._layers = layers

    def __call__(self, x: Tensor, labels: Tensor, *, backward: bool) -> tuple[Tensor, Tensor]:
        """The losses on a batch, and the gradients into their places.

        Args:
            x: float32 (B, channels, rows, columns).
            labels: int64 (B,).
            backward: whether gradients are wanted, of the mean loss over the batch.

        Returns:
            the losses in nats summed over the images, float64, and the numbers of correct answers, int64, of
            all networks.
        """
        images, last = len(labels), self._operations[-1]
        blocked, chunks = _in_chunks(x)
        labels = labels.contiguous()
        product = math.prod(self._operations[0].written) * CHUNK * chunks * len(self._offsets)
        if self._products is None or self._products.numel() < product:
            self._products = torch.empty(product)
        loss = torch.empty(self._count, dtype=torch.float64)
        correct = torch.empty(self._count, dtype=torch.int64)
        packed = array(
            "q",
            (
                *(self._count, len(self._operations), images, chunks, torch.get_num_threads(), backward),
                *(last.written[0], self._ops.buffer_info()[0], self._layers.buffer_info()[0]),
                *(blocked.data_ptr(), labels.data_ptr(), len(self._offsets), self._offsets.buffer_info()[0]),
                *(self._products.data_ptr(), loss.data_ptr(), correct.data_ptr()),
            ),
        )
        if function("stack")(packed.buffer_info()[0]):
            raise MemoryError(f"no memory for the scratch of {self._count} stacked networks")
        return loss, correct

    def _shared(self, networks: Sequence[Sequence[LayerTensors]]) -> array[int]:
        """The addresses of the first layers' distinct D."""
        first = [network[0].offset for network in networks]
        return array("q", dict.fromkeys(offset.data_ptr() for offset in first if offset is not None))

    def _packed(self, op: Operation, layer: LayerTensors, shared: dict[int, int]) -> tuple[int, ...]:
        columns = op.read[0] * math.prod(op.window)
        support = torch.empty(0, dtype=torch.int64) if layer.support is None else layer.support
        start = torch.searchsorted(support, torch.arange(op.written[0] + 1) * columns).int()
        place = op.taps()[support % columns]
        outputs, entries, taps = support // columns, support % columns, math.prod(op.window)
        order = (entries // taps).argsort(stable=True)
        channels = torch.searchsorted((entries // taps)[order], torch.arange(op.read[0] + 1)).int()
        rows, across = entries % taps // op.window[1], entries % op.window[1]
        readers = torch.stack([order, *(t[order] for t in (outputs, rows, across))], 1).int()
        return (
            *(layer.values.numel(), self._address(layer.support), self._address(start), self._address(place)),
            *(self._address(t) for t in (channels, readers)),
            *(self._address(t) for t in (layer.values, layer.alpha, layer.bias, layer.offset)),
            *(self._address(t) for t in (layer.d_values, layer.d_alpha, layer.d_bias)),
            -1 if layer.offset is None else shared.get(layer.offset.data_ptr(), -1),
        )

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self._alive.append(tensor)
        return tensor.data_ptr()


def _in_chunks(x: Tensor) -> tuple[Tensor, int]:
    """(chunks, numbers of an image, CHUNK), the last chunk filled up with zeros."""
    rows, chunks = x.flatten(1), -(-len(x) // CHUNK)
    if chunks * CHUNK > len(x):
        rows = torch.cat([rows, rows.new_zeros(chunks * CHUNK - len(x), rows.shape[1])])
    return rows.view(chunks, CHUNK, -1).transpose(1, 2).contiguous(), chunks
