"""Calls of every native entry that are wrong in one drawn way, each of which has to be refused.

What is drawn never makes a call that could be meant: a row more of x is another batch, and is not drawn.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dctps.kernels import (
    Filters,
    Window,
    conv_backward,
    conv_forward,
    conv_weight,
    conv_weight_backward,
    depthwise_backward,
    depthwise_forward,
    linear_backward,
    linear_forward,
)
from dctps.kernels.norm import RELU6, norm_backward, norm_forward, norm_statistics
from dctps.kernels.stack import Kind, LayerTensors, Operation, StackKernel
from tests.support.drawn import Drawn
from tests.support.drawn_conv import CASES, DEPTHWISE, DrawnConv, drawn_depthwise

Call = tuple[Callable[..., Any], dict[str, Any]]
REFUSED = (ValueError, TypeError)  # what a refusal raises
ENTRIES = (
    "linear_forward",
    "linear_backward",
    "conv_forward",
    "conv_backward",
    "weight_forward",
    "weight_backward",
    "depthwise_forward",
    "depthwise_backward",
    "norm_statistics",
    "norm_forward",
    "norm_backward",
    "stack",
)
_CONVS = tuple(i for i, case in enumerate(CASES) if case[-1] > 2)
_WEIGHTS = tuple(i for i in _CONVS if CASES[i][2] == 1 or CASES[i][1][1] == 1)


def good_call(entry: str, draw: random.Random) -> Call:  # noqa: PLR0911
    """A function and arguments that are right."""
    if entry.startswith("linear"):
        m, n = draw.randint(2, 40), draw.randint(2, 40)
        offset = draw.choice(("zero", "dct", "sdct", "hadamard"))
        d = Drawn.draw(offset, m, n, draw.choice((1, 9, 70, 200)), draw.randint(2, m * n), draw.randrange(99))
        common = {"x": d.x, "values": d.values, "support": d.support, "alpha": d.alpha, "offset": d.form}
        if entry == "linear_forward":
            return linear_forward, {**common, "bias": d.bias, "m": m}
        return linear_backward, {**common, "g": d.g, "needs": (True, True, True, True)}
    if entry.startswith("depthwise"):
        window, x, g, weight, bias = drawn_depthwise(*draw.choice(DEPTHWISE[:3]))
        if entry == "depthwise_forward":
            return depthwise_forward, {"x": x, "weight": weight, "window": window, "bias": bias}
        rest = {"needs_x": True, "needs_weight": True}
        return depthwise_backward, {"g": g, "x": x, "weight": weight, "window": window, **rest}
    if entry.startswith("norm"):
        return _norm_call(entry, draw)
    if entry == "stack":
        return _stack_call(draw)
    c = DrawnConv.draw(draw.choice(_WEIGHTS if entry.startswith("weight") else _CONVS), draw.random() < 0.5)
    common = {"values": c.values, "support": c.support, "alpha": c.alpha}
    if entry.startswith("weight"):
        common["filters"] = c.offset.weight_filters()
        if entry == "weight_forward":
            return conv_weight, {**common, "shape": c.window.shape, "layout": torch.contiguous_format}
        rest = {"needs_values": True, "needs_alpha": True}
        return conv_weight_backward, {**common, "grad_weight": torch.randn(c.window.shape), **rest}
    common |= {"x": c.x, "filters": c.offset.filters(), "window": c.window}
    if entry == "conv_forward":
        return conv_forward, {**common, "bias": torch.randn(c.window.shape[0])}
    return conv_backward, {**common, "g": c.g, "needs": (True, True, True)}


def bad_calls(entry: str, count: int) -> Iterator[tuple[Call, str]]:
    """Calls that are wrong in one way each, and the argument that is; before every tenth a right one."""
    draw = random.Random(entry)
    for i in range(count):
        if i % 10 == 0:
            function, arguments = good_call(entry, draw)
            function(**arguments)
        if entry == "stack":  # whose wrong calls move a support
            function, arguments = good_call(entry, draw)
        names = [name for name, value in arguments.items() if name in _WRONG and value is not None]
        wrong = None
        while wrong is None:
            name = draw.choice(names)
            wrong = _WRONG[name](arguments[name], arguments, draw)
        yield (function, {**arguments, name: wrong}), name


def _support(support: Tensor, arguments: dict[str, Any], draw: random.Random) -> Tensor | None:
    """Positions that are no support: out of order, twice, negative, past the end."""
    size = _size(arguments)
    bad, count = support.clone(), len(support)
    i, j = sorted(draw.sample(range(count), 2))
    match draw.randrange(9):
        case 0:
            bad[i], bad[j] = support[j], support[i]
        case 1:
            bad[j] = bad[i]
        case 2:
            bad[0] = draw.choice((-1, -size, -(2**31), -(2**63)))
        case 3:
            bad[-1] = draw.choice((size, size + 7, 2 * size, 2**31, 2**32 + 1, 2**62, 2**63 - 1))
        case 4:
            bad[i] = draw.choice((-5, size + 1, 2**40))
        case 5:
            bad = bad.flip(0)
        case 6:
            bad[:] = draw.choice((0, size - 1, size, -1))
        case 7:
            bad = torch.tensor([draw.randrange(-size, 3 * size) for _ in range(count)])
            if bool((bad.diff() > 0).all()) and int(bad[0]) >= 0 and int(bad[-1]) < size:
                return None
        case 8:
            return _tensor(support, draw, ("dtype", "device", "longer", "shorter"))
    return bad


def _size(arguments: dict[str, Any]) -> int:
    """Of the weight."""
    if "window" in arguments:
        shape: tuple[int, ...] = arguments["window"].shape
    elif "grad_weight" in arguments or "shape" in arguments:
        shape = arguments.get("shape") or tuple(arguments["grad_weight"].shape)
    else:
        m = arguments["m"] if "m" in arguments else arguments["g"].shape[1]
        shape = m, arguments["x"].shape[1]
    return int(torch.Size(shape).numel())


def _tensor(t: Tensor, draw: random.Random, ways: tuple[str, ...]) -> Tensor:  # noqa: PLR0911
    """The tensor, of another dtype, device, layout or size."""
    match draw.choice(ways):
        case "dtype":
            dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8)
            return t.to(draw.choice([dtype for dtype in dtypes if dtype != t.dtype]))
        case "device":
            return t.to("meta")
        case "sparse":
            return t.to_sparse()
        case "dims":
            return t.unsqueeze(draw.randint(0, t.dim()))
        case "longer":
            return torch.cat([t, t[:1]])
        case "shorter":
            return t[:-1]
        case _:  # the last dimension
            return torch.cat([t, t[..., :1]], -1)


def _of(*ways: str) -> Callable[..., Tensor]:
    return lambda t, arguments, draw: _tensor(t, draw, ways)


def _images(t: Tensor, arguments: dict[str, Any], draw: random.Random) -> Tensor | None:
    """Images with a channel too many (rows may have any number), or of another kind."""
    if t.dim() == 4 and draw.random() < 0.2:
        return torch.cat([t, t[:, :1]], 1)
    wrong = _tensor(t, draw, ("dtype", "device", "sparse", "dims"))
    # Forward, without a gradient that would have to agree, products take bfloat16 too.
    is_meant = wrong.dtype == torch.bfloat16 and "support" in arguments and "g" not in arguments
    return None if is_meant else wrong


def _window(window: Window, arguments: dict[str, Any], draw: random.Random) -> Window:
    m = window.shape[0]
    return dataclasses.replace(
        window,
        **draw.choice(
            (
                {"stride": (0, 1)},
                {"stride": (1, -2)},
                {"padding": (-9, -9)},
                {"dilation": (1, 0)},
                {"groups": window.groups + m},
                {"shape": (m, window.shape[1] + 1, *window.shape[2:])},
                {"shape": (*window.shape[:3], 200)},
            )
        ),
    )


def _filters(filters: Filters, arguments: dict[str, Any], draw: random.Random) -> Filters | None:  # noqa: PLR0911
    """D with a table of another size, another dtype, or numbers that name nothing."""
    if not filters.terms or arguments["alpha"] is None:
        return None
    if filters.rows:
        return dataclasses.replace(filters, rows=draw.choice((1, _size(arguments) // 4096 + 1)))
    name = draw.choice(("bank", "source", "filter", "mix", "signs", "cosine", "maps"))
    found: Any = getattr(filters, name)
    if found is None or (name in ("mix", "cosine") and not found):
        return None
    if name == "maps":
        no_mixing = not filters.mix and not filters.cosine  # where a weight has no use for the number
        return (
            None
            if no_mixing and "window" not in arguments
            else dataclasses.replace(filters, maps=1 + 67 * found)
        )
    if name == "cosine":
        return dataclasses.replace(filters, cosine=draw.choice((1, found + 67, 67)))
    if name == "mix":
        i = draw.randrange(len(found))
        return dataclasses.replace(
            filters,
            mix=tuple(
                _tensor(t, draw, ("dtype", "device", "longer")) if k == i else t for k, t in enumerate(found)
            ),
        )
    if name in ("source", "filter") and draw.random() < 0.6:
        bad = found.clone()
        bad.view(-1)[draw.randrange(found.numel())] = draw.choice((-1, -(2**31), 2**31 - 1, 10**6))
        return dataclasses.replace(filters, **{name: bad})
    if name == "bank":
        bad = (
            found[: max(0, len(found) // 2 - 1)]
            if draw.random() < 0.5
            else _tensor(found, draw, ("dtype", "device"))
        )
        used = filters.source is None or filters.filter is None or int(filters.filter.max()) >= len(bad)
        return (
            dataclasses.replace(filters, bank=bad)
            if used or bad.dtype != found.dtype or bad.is_meta
            else None
        )
    return dataclasses.replace(
        filters, **{name: _tensor(found, draw, ("dtype", "device", "longer", "shorter"))}
    )


def _form(form: Any, arguments: dict[str, Any], draw: random.Random) -> Any:
    """A linear layer's D with another length, or with tables that name nothing."""
    if form.kind == "none" or arguments["alpha"] is None:
        return None
    n = arguments["x"].shape[1]
    match draw.randrange(4):
        case 0:
            return form._replace(size=draw.choice((0, n - 1, 67 * n, -form.size)))
        case 1 if form.order is not None:
            bad = form.order.clone()
            bad[draw.randrange(len(bad))] = draw.choice((-1, form.rounds * form.size, 2**31 - 1, -(2**31)))
            return form._replace(order=bad)
        case 2 if form.order is not None:
            return form._replace(order=_tensor(form.order, draw, ("dtype", "device", "longer", "shorter")))
        case 3 if form.signs is not None:
            signs = form.signs
            short = signs[..., : draw.randrange(1, n)] if n > 1 else signs[..., :0]
            return form._replace(signs=draw.choice((short, signs.double(), signs.to("meta"))))
    return None


def _norm_call(entry: str, draw: random.Random) -> Call:
    """Of images of two rows and more, since one more of a single number would be another shape that fits."""
    shape = draw.randint(2, 5), draw.choice((3, 17, 40)), draw.randint(2, 6), draw.randint(2, 6)
    order = draw.choice((torch.channels_last, torch.contiguous_format))
    x, g, residual = (torch.randn(shape).contiguous(memory_format=order) for _ in range(3))
    own = torch.randn(4, shape[1]).abs()
    if entry == "norm_statistics":
        rest = {"training": draw.random() < 0.5, "momentum": 0.1, "epsilon": 1e-5}
        arguments = {"weight": own[0], "bias": own[1], "running": (own[2], own[3])}
        return norm_statistics, {"x": x, **arguments, **rest}
    common = {"x": x, "table": own, "bounds": RELU6}
    if entry == "norm_forward":
        return norm_forward, {**common, "residual": residual}
    return norm_backward, {**common, "g": g, "y": residual, "training": True, "needs": 4 * (True,)}


def _running(running: tuple[Tensor, Tensor], arguments: dict[str, Any], draw: random.Random) -> Any:
    """One of the statistics of another kind, or where they are needed not there."""
    if draw.random() < 0.2:
        return None if arguments["training"] else draw.choice(((None, running[1]), (running[0], None)))
    wrong = _tensor(running[0], draw, ("dtype", "device", "sparse", "longer", "shorter", "dims"))
    return draw.choice(((wrong, running[1]), (running[1], wrong), (running[0].repeat(2)[::2], running[1])))


def _stack_call(draw: random.Random) -> Call:
    """Two networks of a convolution, a pool and a linear layer."""
    operations = [
        Operation(Kind.WEIGHTED, (2, 6, 6), (3, 4, 4), (3, 3)),
        Operation(Kind.RELU, (3, 4, 4), (3, 4, 4)),
        Operation(Kind.POOL, (3, 4, 4), (3, 2, 2), (2, 2)),
        Operation(Kind.WEIGHTED, (12, 1, 1), (5, 1, 1)),
    ]

    def layer(outputs: int, inputs: int) -> LayerTensors:
        nnz = draw.choice((4, outputs * inputs // 2))
        support = torch.randperm(outputs * inputs)[:nnz].sort().values
        values, alpha, bias = torch.randn(nnz), torch.randn(1), torch.randn(outputs)
        grads = (torch.zeros_like(t) for t in (values, alpha, bias))
        return LayerTensors(values, support, alpha, torch.randn(outputs * inputs), bias, *grads)

    networks = [[layer(3, 18), layer(5, 12)] for _ in range(2)]

    def run(
        networks: list[list[LayerTensors]],
        images: Tensor,
        labels: Tensor,
        moved: Tensor | None,
        chain: list[Operation],
    ) -> Any:
        kernel = StackKernel(chain, networks)
        if moved is not None:
            networks[0][0].support.copy_(moved)  # type: ignore[union-attr]
        return kernel(images, labels, backward=True)

    arguments = {
        "networks": networks,
        "images": torch.randn(70, 2, 6, 6),
        "labels": torch.randint(5, (70,)),
        "moved": networks[0][0].support,
        "chain": operations,
    }
    return run, arguments


def _moved(support: Tensor, arguments: dict[str, Any], draw: random.Random) -> Tensor | None:
    """Another content of a support, after the networks were laid out."""
    bad = _support(support, {"shape": (3, 18)}, draw)
    return (
        bad
        if bad is not None and bad.dtype == torch.int64 and len(bad) == len(support) and not bad.is_meta
        else None
    )


def _networks(networks: list[list[LayerTensors]], arguments: dict[str, Any], draw: random.Random) -> Any:
    """A layer's tensor of another kind."""
    if draw.random() < 0.1:
        return [networks[0][:1], networks[1]]
    layers = list(networks[0])
    name = draw.choice([f.name for f in dataclasses.fields(LayerTensors)])
    t = getattr(layers[1], name)
    if name == "support":
        wrong = _support(t, {"shape": (5, 12)}, draw)
    else:
        wrong = _tensor(t, draw, ("dtype", "device", "sparse", "longer"))
    if wrong is None:
        return None
    layers[1] = dataclasses.replace(layers[1], **{name: wrong})
    return [layers, networks[1]]


def _labels(labels: Tensor, arguments: dict[str, Any], draw: random.Random) -> Tensor:
    bad = labels.clone()
    bad[draw.randrange(len(labels))] = draw.choice((-1, 5, 2**40, -100, -(2**63)))
    return bad if draw.random() < 0.6 else _tensor(labels, draw, ("dtype", "device", "longer", "shorter"))


def _chain(chain: list[Operation], arguments: dict[str, Any], draw: random.Random) -> list[Operation]:
    i = draw.randrange(len(chain))
    wrong = dataclasses.replace(
        chain[i],
        **draw.choice(
            ({"read": (99, 6, 6)}, {"written": (70, 9, 9)}, {"window": (0, 7)}, {"written": (0, 0, 0)})
        ),
    )
    return draw.choice(([*chain[:i], wrong, *chain[i + 1 :]], chain[:-1], [], 40 * chain))


_WRONG: dict[str, Callable[..., Any]] = {
    "support": _support,
    "values": _of("dtype", "device", "sparse", "longer", "shorter"),
    "alpha": _of("dtype", "device", "sparse", "longer"),
    "bias": _of("dtype", "device", "sparse", "longer", "shorter"),
    "x": _images,
    "g": _of("dtype", "device", "sparse", "dims", "longer"),
    "running": _running,
    "table": _of("dtype", "device", "sparse", "dims", "longer", "shorter", "last"),
    "residual": _of("dtype", "device", "sparse", "dims", "longer", "shorter", "last"),
    "y": _of("dtype", "device", "sparse", "dims", "longer", "shorter", "last"),
    "weight": _of("dtype", "device", "sparse", "dims", "longer"),
    "grad_weight": _of("dtype", "device", "sparse", "dims"),
    "window": _window,
    "filters": _filters,
    "offset": _form,
    "networks": _networks,
    "images": _of("dtype", "device", "sparse", "dims", "last"),
    "labels": _labels,
    "moved": _moved,
    "chain": _chain,
}
