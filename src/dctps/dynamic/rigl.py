"""RigL: drop the smallest weights, grow where the dense gradient is largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dctps.arguments import flag, whole
from dctps.dynamic.base import Decay, Dynamics, default_reduce, register_dynamics
from dctps.dynamic.support import change_support_, smallest
from dctps.networks import dense_gradient
from dctps.networks.dense_gradient import BLOCK_BYTES, Capture, Pair
from dctps.nn import DpSLayer

Reduce = Callable[[Tensor], object]


@register_dynamics("rigl")
class RigL(Dynamics):
    """Every `update_interval` steps each layer moves some of its weights to where `|dL/dW|` is largest.

    Of a layer's nnz weights the k = int(f nnz) smallest `|values|` are dropped, with
    f = drop_fraction / 2 * (1 + cos(pi step / end)); of all positions that are then free the k with the
    largest `|dL/dW|` are grown, from the last micro-batch of that step. Grown values are 0, and so are their
    slots in the optimizer. nnz of a layer stays what it is. Call `step()` after each `optimizer.step()`.

    Only weights of the support are ever kept; values of exactly 0 among them count as the smallest. A
    position whose gradient is exactly 0 is not grown: fewer weights then move. The layers' dense gradients
    are ranked in row blocks, as soon as the backward pass has come to a layer, so that an update step holds
    one block more than another step. Among several processes x and g of all layers are kept to the end of
    the step, and the blocks added up one by one: 4 bytes for each weight of each layer.

    Args:
        model: with DpS layers, also compiled (an update step runs eagerly) or wrapped for data parallelism.
        optimizer: any whose state has a number for each value: SGD, Adam, AdamW and most others; also as
            accelerate, transformers or Lightning wrap it.
        update_interval: Delta T, in steps.
        drop_fraction: alpha in the paper, of a layer's weights.
        end: T_end, the step from which on the supports stay; about three quarters of all steps.
        decay: of the drop fraction: `"cosine"`, or `"constant"` as the authors' CIFAR script has it.
        at_least_one: whether every layer moves a weight at each update, even where int(f nnz) is 0, which
            otherwise leaves layers of few weights as they are.
        regrow_dropped: whether a dropped position may be grown at once; it then keeps its value and slots,
            as in the authors' code. If not, exactly k weights move.
        block_bytes: the most for a block of dense gradient.
        all_reduce: sums a tensor over the processes in place; by default `torch.distributed.all_reduce`
            where a default group of several processes is there.

    Raises:
        ValueError: as for `Dynamics`, a kind of layer whose dense gradient is not known, or so few weights in
            every layer that none would ever move.

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        update_interval: int = 100,
        drop_fraction: float = 0.3,
        end: float,
        decay: Decay = "cosine",
        at_least_one: bool = False,
        regrow_dropped: bool = True,
        block_bytes: int = BLOCK_BYTES,
        all_reduce: Reduce | None = None,
    ) -> None:
        super().__init__(model, optimizer, update_interval=update_interval, end=end)
        self._set_share(drop_fraction, decay, at_least_one)
        for name, layer in self.layers.items():
            if not dense_gradient.has_gradient_blocks(layer):
                raise ValueError(
                    f"RigL cannot grow layer {name!r}, a {type(layer).__name__}: freeze its values"
                )
        self.regrow_dropped = flag("regrow_dropped", regrow_dropped)
        self.block_bytes = whole("block_bytes", block_bytes, least=1)
        self._reduce = all_reduce or default_reduce()
        # Collective operations wait for the end of the backward pass, which has some of its own.
        self._capture = Capture(self.layers.values(), self._rank if self._reduce is None else None)
        self._growth: dict[DpSLayer, Growth] = {}
        self._prepare()

    def close(self) -> None:
        """Take every hook away; `step` then does nothing."""
        super().close()
        self._capture.stop()

    def _prepare(self) -> None:
        if self.due:
            self._capture.start()
        else:
            self._capture.stop()

    def _skipped(self) -> None:
        self._capture.clear()
        self._growth.clear()

    def _change(self) -> None:
        for layer in self._used():
            if self._reduce is not None or self._capture.has(layer):
                self._rank(layer)
            self._move(layer, self._growth.pop(layer))
        self._skipped()

    def _used(self) -> list[DpSLayer]:
        """The layers that any process has a gradient of, the same in all of them."""
        layers = list(self.layers.values())
        here = [float(layer in self._growth or self._capture.has(layer)) for layer in layers]
        has = torch.tensor(here, dtype=torch.float32, device="cpu")
        if self._reduce is not None:
            has = has.to(layers[0].values.device)
            self._reduce(has)
        if not bool(has.any()):
            raise RuntimeError(
                "RigL saw no backward pass through any layer in this update step: call step() after each "
                "optimizer.step(), and run the model by its modules' own forward"
            )
        return [layer for layer, is_used in zip(layers, has.tolist(), strict=True) if is_used]

    @torch.no_grad()
    def _rank(self, layer: DpSLayer) -> None:
        """Find the layer's largest gradients, and let go of what they are made of."""
        pairs = self._capture.take(layer)
        self._growth[layer] = largest_gradients(
            layer, pairs, self._count(layer.nnz), block_bytes=self.block_bytes, reduce=self._reduce
        )

    def _move(self, layer: DpSLayer, growth: Growth) -> None:
        if not self.regrow_dropped:
            dropped = layer.support[smallest(layer.values, len(growth.positions))]
            change_support_(layer, dropped, growth.positions, self.optimizer)
            return
        which = smallest(layer.values, self._count(layer.nnz))
        positions = torch.cat([layer.support[which], growth.positions])
        scores = torch.cat([growth.at_support[which], growth.scores])
        is_new = torch.arange(len(positions), device=positions.device) >= len(which)
        order = positions.argsort()
        chosen = order[scores[order].sort(descending=True, stable=True).indices[: len(which)]]
        taken = torch.zeros_like(is_new)
        taken[chosen] = True
        change_support_(layer, positions[~taken & ~is_new], positions[taken & is_new], self.optimizer)


class Growth(NamedTuple):
    """What `largest_gradients` found.

    Attributes:
        positions: int64, sorted flat positions outside the support.
        scores: `|dL/dW|` there.
        at_support: `|dL/dW|` at the support, (nnz,).
    """

    positions: Tensor
    scores: Tensor
    at_support: Tensor


def largest_gradients(
    layer: DpSLayer,
    pairs: Sequence[Pair],
    count: int,
    *,
    block_bytes: int = BLOCK_BYTES,
    reduce: Reduce | None = None,
) -> Growth:
    """The `count` largest `|dL/dW|` outside the support of a layer, W = alpha * D + S.

    Exactly that many, ties to the earlier position; fewer where fewer gradients are not 0, since a gradient
    of 0 says nothing for a weight. Peak memory: one block (two where torch makes it channels-last), 4 bytes
    for each weight of the support, and to sort candidates 40 bytes for each of 2 `count` + 9,216.

    Args:
        layer: linear or convolutional.
        pairs: of the layer's input x and its output's gradient dL/dy, one for each use of the layer.
        count: how many.
        block_bytes: the most for a block of dense gradient, but at least one row.
        reduce: sums a tensor over processes, in place; called with each block in turn.

    Raises:
        TypeError: another kind of layer.
    """
    support = layer.support
    at_support = layer.values.new_zeros(support.shape, dtype=dense_gradient.gradient_dtype(layer))
    largest = dense_gradient.Largest(count)
    for start, block in dense_gradient.gradient_blocks(layer, pairs, block_bytes) if count else ():
        if reduce is not None:
            reduce(block)
        block.abs_()
        bounds = torch.tensor([start, start + len(block)], device=support.device)
        low, high = torch.searchsorted(support, bounds).tolist()
        here = support[low:high] - start
        at_support[low:high] = block[here]
        block[here] = 0.0
        largest.add(start, block)
        del block
    positions, scores = largest.found(at_support)
    return Growth(positions, scores, at_support)
