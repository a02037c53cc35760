"""y = alpha * D x + S x + b as functions of tensors and an offset, and the autograd function behind them.

The autograd function saves x and the layer's own parameters, and what the path keeps beside them. First
derivatives are the path's. Where a second derivative may follow, or the gradient is a batch of gradients, the
path's twin in torch operations takes its place.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import Function

from dctps.kernels import variant
from dctps.offsets import Offset
from dctps.product.exported import exported_product
from dctps.product.geometry import ROWS, ConvGeometry, Geometry, conv_geometry, flat
from dctps.product.machine import machine_of
from dctps.product.path import Call, Path
from dctps.product.paths.dense import DENSE
from dctps.product.precision import allows_tf32, autocast, no_autocast
from dctps.product.rule import Backend, Seen, decide, environment_backend, observers
from dctps.product.weight import Weight
from dctps.transforms.tables import constant_to_compilers, is_exporting

_PLAIN = (Tensor, nn.Parameter)
_FLOAT32 = torch.float32


def dps_linear(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """y = x (alpha * D + S)^T + b.

    Args:
        x: (*, n), float32, float64, bfloat16 or float16; cast as for `F.linear` under autocast.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in the m x n weight.
        offset: D, of shape (m, n).
        alpha: (1,), or None where there is no D.
        bias: (m,) or None.
        backend: which path, or group of paths; `"auto"` leaves it to the rule (`rule.py`).

    Returns:
        (*, m), of x's dtype.
    """
    rows = x if x.dim() == 2 else flat(x)
    y = product(rows, Weight(values, alpha, support, offset), ROWS, backend, bias)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def dps_conv2d(
    x: Tensor,
    values: Tensor,
    support: Tensor,
    offset: Offset,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    backend: Backend = "auto",
) -> Tensor:
    """The 2-D convolution of x with W = alpha * D + S, plus bias.

    Args:
        x: (batch, channels, height, width), dtypes as `dps_linear`.
        values: (nnz,).
        support: int64 (nnz,), sorted flat positions in W.
        offset: D, of shape (out, channels / groups, kh, kw), in `offset.groups` groups.
        alpha: (1,), or None where there is no D.
        bias: (out,) or None.
        stride: of the kernel, rows and columns; `padding` (zeros) and `dilation` likewise.
        padding: see `stride`.
        dilation: see `stride`.
        backend: which path, or group of paths; `"auto"` leaves it to the rule (`rule.py`).

    Returns:
        (batch, out, height', width'), of x's dtype, in channels-last order where x is.

    Raises:
        ValueError: `backend` names a path that cannot take this convolution.
    """
    geometry = conv_geometry(offset.shape, stride, padding, dilation, offset.groups)
    return product(x, Weight(values, alpha, support, offset), geometry, backend, bias)


def product(
    x: Tensor, weight: Weight, geometry: Geometry, backend: Backend, bias: Tensor | None = None
) -> Tensor:
    """The product with W by the path that `backend` names or the rule chooses, plus b."""
    values, alpha, support, offset = weight
    training = torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (alpha is not None and alpha.requires_grad)
    )
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    if traced or torch.is_autocast_enabled(x.device.type):
        x = autocast(x)
        with no_autocast(x):
            if traced:
                return _traced(x, weight, geometry, backend, bias, training)
            return product(x, weight, geometry, backend, bias)
    path, ordinary = choose(x, weight, geometry, backend, training)
    # In half precision the sum is rounded before b is added, as compiled layers do.
    fused = bias if path.adds_bias and bias is not None and x.dtype == bias.dtype == _FLOAT32 else None
    saved = path.saved(x, weight) if path.keeps else None
    apply = _apply if ordinary else Product.apply
    y: Tensor = apply(x, values, alpha, fused, support, saved, offset, geometry, path)
    return y if bias is fused else geometry.add(y, bias)


def choose(
    x: Tensor, weight: Weight, geometry: Geometry, backend: Backend, training: bool
) -> tuple[Path, bool]:
    """The path for a call, and whether its tensors are ordinary: no tracer or batching looks at them."""
    values, alpha, support, offset = weight
    ordinary = is_ordinary(x, values, support) if alpha is None else is_ordinary(x, values, support, alpha)
    native = ordinary and x.is_cpu and values.is_cpu and torch.float64 not in (x.dtype, values.dtype)
    requested = environment_backend() if backend == "auto" else backend
    nnz, threads, which = values.shape[0], torch.get_num_threads(), variant()
    machine, tf32 = machine_of(x.device.type, which), x.is_cuda and allows_tf32()
    kind = native, ordinary, training, x.device.type, tf32, threads, which, machine

    def call() -> Call:
        return Call.of(
            x, nnz, offset, geometry, native=native, training=training, ordinary=ordinary, tf32=tf32
        )

    path = offset.memo(
        (x.shape, x.stride(), x.dtype, nnz, geometry, requested, kind), lambda: decide(call(), requested)
    )
    for observe in observers:
        observe(Seen(x, weight, geometry, backend, call(), path))
    return path, ordinary


def is_ordinary(*tensors: Tensor) -> bool:
    """Whether code outside of torch may see the tensors: no subclass, no transform, no batch of gradients."""
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    for t in tensors:
        if type(t) not in _PLAIN or is_legacy_batchedtensor(t) or is_functorch_wrapped_tensor(t):
            return False
    return True


class Product(Function):
    """alpha * D x + S x by a path, plus b where the path adds it."""

    generate_vmap_rule = True  # the torch paths serve there, the only ones that take tensors in batches

    @staticmethod
    def forward(
        x: Tensor,
        values: Tensor,
        alpha: Tensor | None,
        bias: Tensor | None,
        support: Tensor,
        saved: Tensor | None,
        offset: Offset,
        geometry: Geometry,
        path: Path,
    ) -> Tensor:
        return path.forward(x, Weight(values, alpha, support, offset), geometry, bias, saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, alpha, _, support, saved, ctx.offset, ctx.geometry, ctx.path = inputs
        ctx.save_for_backward(x, values, alpha, support, saved)
        ctx.save_for_forward(x, values, alpha, support, saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, alpha, support, saved = ctx.saved_tensors
        path, needs = ctx.path, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or not is_ordinary(g, x):
            # Views, which a transform makes, have no rule for autograd's own batches of gradients.
            path = DENSE if is_legacy_batchedtensor(g) else path.twin
        weight = Weight(values, alpha, support, ctx.offset)
        if torch.is_autocast_enabled(x.device.type):
            with no_autocast(x):
                found = path.backward(g, x, weight, ctx.geometry, saved, needs)
        else:
            found = path.backward(g, x, weight, ctx.geometry, saved, needs)
        return (*found, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """The map is linear in x, and linear in (values, alpha, b) together."""
        dot_x, dot_values, dot_alpha, dot_bias = tangents[:4]
        x, values, alpha, support, _ = ctx.saved_tensors
        terms: list[Tensor] = []
        if dot_x is not None:
            terms.append(_by_twin(ctx, dot_x, values, alpha, support))
        if dot_values is not None or dot_alpha is not None:
            dot_values = torch.zeros_like(values) if dot_values is None else dot_values
            dot_alpha = torch.zeros_like(alpha) if dot_alpha is None and alpha is not None else dot_alpha
            terms.append(_by_twin(ctx, x, dot_values, dot_alpha, support))
        if not terms:
            terms.append(_by_twin(ctx, torch.zeros_like(x), values, alpha, support))
        dot_y = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return dot_y if dot_bias is None else ctx.geometry.add(dot_y, dot_bias)


# torch's own `apply` binds arguments by their names, and unwraps tensors that outlived a transform: several
# times the cost of a call. Ordinary tensors need neither.
_apply: Any = super(Function, Product).apply


def _by_twin(ctx: Any, x: Tensor, values: Tensor, alpha: Tensor | None, support: Tensor) -> Tensor:
    arguments = x, values, alpha, None, support, None, ctx.offset, ctx.geometry, ctx.path.twin
    y: Tensor = Product.apply(*arguments)
    return y


def _traced(
    x: Tensor, weight: Weight, geometry: Geometry, backend: Backend, bias: Tensor | None, training: bool
) -> Tensor:
    """The product under a compiler, as an operator that it does not see into; in an export, by plain ones."""
    if is_exporting():
        return geometry.add(exported_product(x, weight, geometry), bias)
    values, alpha, support, offset = weight
    window: list[int] = []
    if isinstance(geometry, ConvGeometry):
        window = [*geometry.stride, *geometry.padding, *geometry.dilation]
    y = torch.ops.dctps.product(x, values, alpha, support, spec_of(offset), window, backend, training)
    return geometry.add(y, bias)


@constant_to_compilers
def spec_of(offset: Offset) -> str:
    """The offset's spec as JSON, by which operators know it."""
    return json.dumps(offset.spec)
