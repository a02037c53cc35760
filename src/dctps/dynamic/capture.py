"""What a layer saw in one backward pass: its input x and its output's gradient g, by reference."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dctps.dynamic.growth import Pair
from dctps.nn import DpSLayer


class Capture:
    """Hooks on some layers while it is on; none, and nothing kept, while it is off.

    A layer that is used several times in one forward pass has a pair for each use. Those of an earlier
    micro-batch make way for those of the next. While it is on, compiled code runs eagerly: a
    compiler takes no notice of hooks that come and go.

    Args:
        layers: to watch.
        complete: called with a layer as soon as it has the pairs of all its uses in this backward pass.
    """

    def __init__(self, layers: Iterable[DpSLayer], complete: Callable[[DpSLayer], None] | None) -> None:
        self._layers, self._complete = list(layers), complete
        self._handles: list[RemovableHandle] = []
        self._eagerly: Any = None
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
            self._eagerly = torch.compiler.set_stance("force_eager")

    def stop(self) -> None:
        """Leave no hook behind, and keep nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._eagerly is not None:
            self._eagerly.__exit__(None, None, None)
            self._eagerly = None
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


class _Hook:
    """A forward hook that a copy of the network does not take along."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture

    def __call__(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        if self._capture is not None:
            assert isinstance(layer, DpSLayer)
            self._capture.seen(layer, inputs[0] if inputs else named["x"], output)

    def __reduce__(self) -> Any:
        return _Hook, ()
