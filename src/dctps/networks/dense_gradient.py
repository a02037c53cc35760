"""The dense gradient dL/dW of a layer in row blocks, its largest entries, and the hooks that see x and dL/dy.

It is made in blocks of whole rows, each of which is ranked against the best so far and dropped. At any moment
there are one block (two where torch gives it channels-last) and O(count) candidates.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dctps.nn.conv import DpSConvolution
from dctps.nn.layer import DpSLayer
from dctps.nn.linear import DpSLinear

Pair = tuple[Tensor, Tensor]
Rows = Callable[[int, int], Tensor]

BLOCK_BYTES = 8 << 20
_CHUNK = 1 << 13  # scores that are compared, and at worst sorted, at a time
_SPARE = 1 << 10  # candidates held beyond twice those wanted, before they are sorted


def has_gradient_blocks(layer: DpSLayer) -> bool:
    """Whether `gradient_blocks` knows this kind of layer."""
    return isinstance(layer, tuple(_ROWS))


def gradient_blocks(
    layer: DpSLayer, pairs: Sequence[Pair], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, Tensor]]:
    """dL/dW = sum_b g_b x_b^T in blocks of whole rows, one after the other; it is never there as a whole.

    Args:
        layer: linear or convolutional.
        pairs: of the layer's input x and its output's gradient g, one for each use of the layer.
        block_bytes: the most for a block, but at least one row.

    Returns:
        pairs of the flat position at which a block begins, and the block, (rows * n,), in float32 or float64.

    Raises:
        TypeError: another kind of layer.
    """
    rows_of = next((rows for kind, rows in _ROWS.items() if isinstance(layer, kind)), None)
    if rows_of is None:
        raise TypeError(
            f"the dense gradient of layer {layer.offset.layer!r}, a {type(layer).__name__}, is not known here"
        )
    m, n, dtype = layer.offset.out_features, layer.offset.in_features, gradient_dtype(layer)
    in_group = m // layer.offset.groups
    most = max(1, block_bytes // (n * dtype.itemsize))
    # Whole groups, or rows within one: a block never straddles two groups' inputs.
    step = most // in_group * in_group if most >= in_group else most
    shared = [rows_of(layer, x.detach().to(dtype), g.detach().to(dtype)) for x, g in pairs if x.numel()]
    start = 0
    while start < m:
        stop = min(start + step, m)
        if step < in_group:
            stop = min(stop, (start // in_group + 1) * in_group)
        # No local name, which would keep this block while the next is made.
        yield (
            start * n,
            _sum(shared, start, stop) if shared else layer.values.new_zeros((stop - start) * n, dtype=dtype),
        )
        start = stop


def _sum(shared: Sequence[Rows], start: int, stop: int) -> Tensor:
    block = shared[0](start, stop).contiguous().reshape(-1)
    for rows in shared[1:]:
        block += rows(start, stop).reshape(-1)
    return block


def _linear_rows(layer: DpSLayer, x: Tensor, g: Tensor) -> Rows:
    """dW[r, c] = sum_b g[b, r] x[b, c]."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return lambda start, stop: g[:, start:stop].T @ x


def _conv_rows(layer: DpSLayer, x: Tensor, g: Tensor) -> Rows:
    """The convolution's weight gradient, of some outputs and the inputs that their groups see."""
    assert isinstance(layer, DpSConvolution)
    axes = len(layer.kernel_size)
    x, g = (t if t.dim() == axes + 2 else t.unsqueeze(0) for t in (x, g))
    x, padding = layer.padded(x)
    channels, in_group = layer.in_channels // layer.groups, layer.out_channels // layer.groups

    def rows(start: int, stop: int) -> Tensor:
        first, last = start // in_group, (stop - 1) // in_group + 1
        # Only the weight's shape is looked at.
        weight = x.new_zeros(1).expand(stop - start, channels, *layer.kernel_size)
        grad_weight: Tensor = torch.ops.aten.convolution_backward(
            g[:, start:stop],
            x[:, first * channels : last * channels],
            weight,
            None,
            layer.stride,
            padding,
            layer.dilation,
            False,
            (0,) * axes,
            last - first,
            (False, True, False),
        )[1]
        return grad_weight

    return rows


_ROWS: dict[type[nn.Module], Callable[[DpSLayer, Tensor, Tensor], Rows]] = {
    DpSLinear: _linear_rows,
    DpSConvolution: _conv_rows,
}


class Largest:
    """The `count` largest scores of a stream in ascending position; ties to the earlier.

    Args:
        count: how many.
        above: only scores above this one are taken.
    """

    def __init__(self, count: int, above: float = 0.0) -> None:
        self.count, self.held = count, 0
        self.threshold = above if count else math.inf
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, start: int, scores: Tensor) -> None:
        """Rank (k,) scores at positions from `start` on."""
        for chunk in scores.split(_CHUNK):
            # Once `count` are held, an equal score at a later position loses.
            better = (chunk > self.threshold).nonzero().squeeze(1)
            if len(better):
                self.parts.append((better + start, chunk[better]))
                self.held += len(better)
                if self.held > 2 * self.count + _SPARE:
                    self._prune()
            start += len(chunk)

    def found(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sorted positions, and scores of the dtype and device of `like`."""
        if not self.parts:
            return like.new_empty(0, dtype=torch.int64), like.new_empty(0)
        self._prune()
        return self.parts[0]

    def _prune(self) -> None:
        positions, scores = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        if len(scores) >= self.count:
            kept = scores.sort(descending=True, stable=True).indices[: self.count].sort().values
            positions, scores = positions[kept], scores[kept]
            self.threshold = float(scores.min())
        self.parts, self.held = [(positions, scores)], len(scores)


def gradient_dtype(layer: DpSLayer) -> torch.dtype:
    """In which the layer's dense gradient is made: float64 for float64, else float32."""
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32


class Capture:
    """Hooks on some layers while it is on; none, and nothing kept, while it is off.

    A layer that is used several times in one forward pass has a pair for each use. Those of an earlier
    micro-batch make way for those of the next. While it is on, compiled code runs eagerly: a
    compiler takes no notice of hooks that come and go. One that is gone, as after an error, is off.

    Args:
        layers: to watch.
        complete: called with a layer as soon as it has the pairs of all its uses in this backward pass.
    """

    def __init__(self, layers: Iterable[DpSLayer], complete: Callable[[DpSLayer], None] | None) -> None:
        self._layers, self._complete = list(layers), complete
        self._handles: list[RemovableHandle] = []
        self._release: Callable[[], object] = _nothing
        self.clear()

    def start(self) -> None:
        """Watch, if it does not yet."""
        if self._handles:
            return
        # Before the users' own hooks, which may put something else in the output's place.
        self._handles = [
            layer.register_forward_hook(_Hook(self), prepend=True, with_kwargs=True) for layer in self._layers
        ]
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled, and it is slow to import
            _Eager.begin()
            self._release = weakref.finalize(self, _Eager.end)

    def stop(self) -> None:
        """Leave no hook behind, and keep nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._release()
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self._pairs: defaultdict[DpSLayer, list[Pair]] = defaultdict(list)
        self._uses: defaultdict[DpSLayer, int] = defaultdict(int)

    def has(self, layer: DpSLayer) -> bool:
        """Whether there are pairs of the layer."""
        return bool(self._pairs[layer])

    def take(self, layer: DpSLayer) -> list[Pair]:
        """The layer's pairs, which are then forgotten."""
        self._uses[layer] = 0
        return self._pairs.pop(layer, [])

    def seen(self, layer: DpSLayer, x: Tensor, y: Tensor) -> None:
        """Note a use of the layer, y being its output."""
        if not y.requires_grad:
            return
        # A layer that checkpointing runs again within the backward pass begins no new micro-batch.
        if self._pairs[layer] and torch._C._current_graph_task_id() == -1:
            self.take(layer)
        self._uses[layer] += 1

        def arrived(g: Tensor) -> None:
            self._pairs[layer].append((x, g))
            if self._complete is not None and len(self._pairs[layer]) >= self._uses[layer]:
                self._complete(layer)

        y.register_hook(arrived)


def _nothing() -> None: ...


class _Eager:
    """Compiled code runs eagerly from the first of some overlapping spans to the end of the last."""

    open = 0
    stance: Any = None

    @classmethod
    def begin(cls) -> None:
        if not cls.open:
            cls.stance = torch.compiler.set_stance("force_eager")
        cls.open += 1

    @classmethod
    def end(cls) -> None:
        cls.open -= 1
        if not cls.open:
            cls.stance.__exit__(None, None, None)


class _Hook:
    """A forward hook that a copy of the network does not take along."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = _nothing if capture is None else weakref.ref(capture)

    def __call__(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        if (capture := self._capture()) is not None:
            assert isinstance(layer, DpSLayer)
            capture.seen(layer, inputs[0] if inputs else named["x"], output)

    def __reduce__(self) -> Any:
        return _Hook, ()
