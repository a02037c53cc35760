"""The native kernel of stacked networks: losses and gradients of many on one batch (`csrc/stack/stack.c`)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dctps.kernels.boundary import CPU, address, own, raise_failure, strided
from dctps.kernels.layouts import CHUNK, MOST_OPERATIONS, Failure, Kind, LayerFields, OperationFields, StackCall
from dctps.kernels.loader import function


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
        if before is None:
            joined = self.kind == Kind.WEIGHTED
        else:
            flat = self.read == (math.prod(before.written), 1, 1)
            joined = flat and self.kind == Kind.WEIGHTED or self.read == before.written
        if self.kind == Kind.WEIGHTED:
            return joined and left == [rows - down + 1, columns - across + 1]
        if self.kind == Kind.RELU:
            return joined and before is not None and before.kind == Kind.WEIGHTED and self.read == self.written
        return joined and outputs == channels and down * left[0] <= rows and across * left[1] <= columns


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One network's layer: W = alpha D + S and b, and where their gradients go. All float32 and contiguous.

    Attributes:
        values: (nnz,), of S.
        support: int64 (nnz,), sorted flat positions; None: all.
        alpha: (1,), or None without D.
        offset: D, flat, or None.
        bias: (outputs,) or None.
        gragrad_values: of the values, or None where not needed; so are the others.
        gragrad_alpha: see `grad_values`.
        gragrad_bias: see `grad_values`.
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

    Args:
        operations: the first is weighted, at most 64, and the last leaves one pixel for each class.
        networks: of each, the tensors of its weighted layers in order.

    Raises:
        TypeError: a tensor of another dtype, or not on the CPU.
        ValueError: operations or tensors that do not fit each other, or a support that is none.
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
            raise ValueError(f"no chain of operations, or not one layer for each weighted one: {self._operations}")
        self._lay_out()

    def _lay_out(self) -> None:
        """The structs that C reads, and what their addresses point to."""
        self._alive: list[Tensor] = []
        ops = [
            OperationFields(
                *(op.kind, *op.read, *op.written, *op.window),
                taps=self._kept(op.taps()) if op.kind == Kind.WEIGHTED else 0,
            )
            for op in self._operations
        ]
        offsets = (network[0].offset for network in self._networks)
        shared = list({offset.data_ptr(): offset for offset in offsets if offset is not None})
        layers = []
        for network in self._networks:
            mine = iter(network)
            for i, op in enumerate(self._operations):
                layer = next(mine) if op.kind == Kind.WEIGHTED else None
                layers.append(LayerFields(shared=-1) if layer is None else self._fields(op, layer, [] if i else shared))
        self._ops, self._layers = (OperationFields * len(ops))(*ops), (LayerFields * len(layers))(*layers)
        self._offsets = (ctypes.c_int64 * len(shared))(*shared)

    def __call__(self, x: Tensor, labels: Tensor, *, backward: bool) -> tuple[Tensor, Tensor]:
        """The losses on a batch, and the gradients into their places.

        Args:
            x: float32 (B, channels, rows, columns).
            labels: int64 (B,).
            backward: whether gradients are wanted, of the mean loss over the batch.

        Returns:
            the losses in nats summed over the images, float64, and the numbers of correct answers, int64, of
            all networks.

        Raises:
            TypeError: x or labels of another dtype, or not on the CPU.
            ValueError: x or labels of other sizes, a label that is no class, or a support that has become none.
        """
        x, first, last = strided(x, 4, "the images"), self._operations[0], self._operations[-1]
        images = x.shape[0]
        if math.prod(x.shape[1:]) != math.prod(first.read):
            raise ValueError(f"images of shape {tuple(x.shape[1:])} for networks that read {first.read}")
        blocked, chunks = _in_chunks(x)
        labels = labels.contiguous()
        product = math.prod(first.written) * CHUNK * chunks * len(self._offsets)
        if self._products is None or self._products.numel() < product:
            self._products = torch.empty(product, dtype=torch.float32, device=CPU)
        count = len(self._networks)
        loss = torch.empty(count, dtype=torch.float64, device=CPU)
        correct = torch.empty(count, dtype=torch.int64, device=CPU)
        call = StackCall(
            networks=count,
            operations=len(self._operations),
            images=images,
            chunks=chunks,
            threads=torch.get_num_threads(),
            backward=backward,
            classes=last.written[0],
            ops=ctypes.addressof(self._ops),
            layers=ctypes.addressof(self._layers),
            x=own(blocked),
            labels=address(labels, images, "the labels", torch.int64),
            shared=len(self._offsets),
            offsets=ctypes.addressof(self._offsets),
            products=own(self._products),
            loss=own(loss),
            correct=own(correct),
        )
        failure = function("stack")(ctypes.addressof(call))
        if failure == Failure.CHANGED:  # a support moved since the layers were laid out
            self._lay_out()
            return self(x, labels, backward=backward)
        if failure:
            raise_failure(failure, f"{count} stacked networks", last.written[0])
        return loss, correct

    def _fields(self, op: Operation, layer: LayerTensors, shared: list[int]) -> LayerFields:
        outputs, n, taps = op.written[0], op.inputs, math.prod(op.window)
        values, nnz, size = layer.values, layer.values.numel(), outputs * n
        if layer.support is None and (nnz != size or layer.offset is not None):
            raise ValueError(f"{nnz} values without a support in a layer of {size}")
        live, support = address(layer.support, nnz, "the support", torch.int64), _positions(layer.support, size)
        row, entries = support // n, support % n
        order = (entries // taps).argsort(stable=True)
        rows, across = entries % taps // op.window[1], entries % op.window[1]
        readers = torch.stack([order, *(t[order] for t in (row, rows, across))], 1).int()
        grads = layer.grad_values, layer.grad_alpha, layer.grad_bias
        if layer.offset is not None and layer.alpha is None:
            raise ValueError("D without an alpha")
        fields = LayerFields(
            nnz=nnz,
            support=live,
            laid_out=self._kept(support) if live else 0,
            start=self._kept(_starts(row, outputs)),
            place=self._kept(op.taps()[entries]),
            column=self._kept(_starts((entries // taps)[order], op.read[0])),
            readers=self._kept(readers),
            values=address(values, nnz, "the values"),
            alpha=address(layer.alpha, 1, "alpha"),
            bias=address(layer.bias, outputs, "the bias"),
            offset=address(layer.offset, size, "D"),
            grad_values=address(grads[0], nnz, "the gradient of the values"),
            grad_alpha=address(grads[1], 1, "the gradient of alpha"),
            grad_bias=address(grads[2], outputs, "the gradient of the bias"),
            shared=-1,
        )
        if layer.offset is not None and fields.offset in shared:
            fields.shared = shared.index(fields.offset)
        return fields

    def _kept(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return own(tensor)


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
    """(chunks, numbers of an image, CHUNK), the last chunk filled up with zeros."""
    rows, chunks = x.flatten(1), -(-len(x) // CHUNK)
    if chunks * CHUNK > len(x):
        rows = torch.cat([rows, rows.new_zeros(chunks * CHUNK - len(x), rows.shape[1])])
    return rows.view(chunks, CHUNK, -1).transpose(1, 2).contiguous(), chunks
