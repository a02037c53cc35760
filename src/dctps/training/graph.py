"""The forward and backward pass of a training step as one CUDA graph: a GPU then waits for no Python.

A graph replays the very launches that were recorded, on the same memory. So images and labels are copied to
where it reads them, the gradients are always the same tensors, and what changes a tensor's size, a constant
or the hooks of a layer takes a plain pass. The optimizer, which is a few launches for O(nnz) numbers, stays
outside, and with it the learning rate, clipping and the supports.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Pass = Callable[[Tensor, Tensor], Tensor]  # images and labels to the sums of a step, with a backward pass

_WARM_UPS = 3  # torch's advice before a recording


def wanted() -> bool:
    """Whether the environment variable DCTPS_CUDA_GRAPH asks for it.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    said = os.environ.get("DCTPS_CUDA_GRAPH", "0")
    if said not in ("0", "1"):
        raise ValueError(f"DCTPS_CUDA_GRAPH={said!r}: set it to 1, to 0, or leave it out")
    return said == "1"


class GraphedPass:
    """A pass over batches of one size, recorded at the first.

    Args:
        run: the pass; it adds to gradients that are there.
        model: whose buffers the pass may change, as batch norms do.
        parameters: whose gradients it makes.
    """

    def __init__(self, run: Pass, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._run, self._model, self._parameters = run, model, list(parameters)
        self._replay: Callable[[], object] | None = None

    def takes(self, images: Tensor) -> bool:
        """Whether the batch has the recorded size; the first batch decides it."""
        return self._replay is None or images.shape == self._images.shape

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sums of the step; the gradients are those of this batch alone."""
        if self._replay is None:
            self._record(images, labels)
        assert self._replay is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._replay()
        return self._sums.clone()

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        before = [(buffer, buffer.clone()) for buffer in self._model.buffers()]

        def once() -> None:
            for parameter in self._parameters:
                parameter.grad = None
            self._sums = self._run(self._images, self._labels)
            self._gradients = [parameter.grad for parameter in self._parameters]

        self._replay = record(once)
        # The warm-up has moved running statistics. Supports have not changed, and must not be written.
        for buffer, value in before:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def record(once: Callable[[], None]) -> Callable[[], object]:
    """Record `once` after some warm-ups on a stream of their own; gives what replays it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay
