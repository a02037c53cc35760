"""What the layers share: D, S, alpha and bias, and how each is made."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from dctps.arguments import NO_WEIGHTS, flag, real, whole
from dctps.fused.waiting import settled
from dctps.initial import Init, Law, carry, default_law, law_by, law_of
from dctps.nn.saved_layer import SavedLayer
from dctps.offsets import Offset, OffsetChoice, ZeroOffset, build_offset
from dctps.product.rule import Backend
from dctps.product.weight import dps_weight
from dctps.sparse import budget, check_support, random_support

Alpha = Literal["one", "match"] | float

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class DpSLayer(SavedLayer):
    """A layer with the weight W = alpha * D + S, of which only S's values, alpha and the bias exist.

    Attributes:
        values: Parameter (nnz,), the entries of S at the support. Without a single one it has no gradient,
            which optimizers and clipping could not divide by its size.
        support: buffer, int64 (nnz,), sorted flat row-major positions in W.
        alpha: Parameter (1,), or None under the `zero` offset.
        bias: Parameter (out,) or None.
        offset: D as an operator; no module, no parameters. Its `layer` names the layer's draws. Read from the
            state at each access, which refuses a state that is not whole.
        identity: buffer, int64 (32,): which offset and which support the values belong to (`identity.py`).
        weight_law: that the dense layer's weight would be drawn from; `bias_law` likewise.
        seed: of the support, and of whatever else `reset_parameters` draws.
        backend: the path that its calls take: `"dense"`, `"transform"`, `"native"`, or `"auto"`. Saved with
            no checkpoint, as it concerns the machine and not the network.
    """

    backend: Backend = "auto"
    alpha: nn.Parameter | None
    bias: nn.Parameter | None
    weight_law: Law
    bias_law: Law

    def _build(
        self,
        shape: tuple[int, ...],
        *,
        groups: int,
        bias: bool,
        offset: OffsetChoice,
        density: float | None,
        nnz: int | None,
        support: Tensor | None,
        alpha: Alpha,
        alpha_trainable: bool,
        seed: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        seed = whole("seed", seed)
        offset = build_offset(offset, shape, groups=groups, seed=seed)
        if sum(given is not None for given in (density, nnz, support)) != 1:
            raise ValueError("give one of density, nnz and support: it fixes the other two")
        size = math.prod(shape)
        if support is not None:
            support = check_support(support, shape)
            count = len(support)
        else:
            count = budget(density, size) if density is not None else whole("nnz", nnz)
            if not 0 <= count <= size:
                raise ValueError(f"nnz must be in 0..{size} for a weight of shape {shape}, got {count}")
        has_offset = not isinstance(offset, ZeroOffset)
        if density == 0 and not has_offset:
            raise ValueError(NO_WEIGHTS)
        self.seed = seed
        self._alpha_law, self._given_support = alpha, support is not None
        self.weight_law = self.bias_law = default_law(offset.in_features)

        self.values = nn.Parameter(torch.empty(count, device=device, dtype=dtype), count > 0)
        where = self.values.device
        self.alpha = (
            nn.Parameter(self.values.new_empty(1), flag("alpha_trainable", alpha_trainable))
            if has_offset
            else None
        )
        self.bias = nn.Parameter(self.values.new_empty(shape[0])) if bias else None
        if support is None:
            support = torch.empty(count, dtype=torch.int64, device=where)
        elif where.type == "meta":
            raise ValueError(
                "a given support would be lost on the meta device: build the layer on a real one"
            )
        self.register_buffer("support", support.to(where))
        self._identify(offset, where)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer as its arguments say, from its seed; a no-op on the meta device.

        S is 0 under an offset. Under `zero` its values follow the layer's laws, by default those of
        torch's own layers, as the bias does, each from the draw of its own position. A support that came
        from the seed is drawn again; one that was given is kept.
        """
        if self.values.is_meta:
            return
        if not self._given_support:
            size = math.prod(self.last_map.shape)
            self.support.copy_(random_support(size, self.nnz, seed=self.seed, layer=self.last_map.layer))
        self.seal(self.last_map)
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """Values, alpha and bias as they begin."""
        if self.alpha is None:
            values = self.weight_law.draw(self.seed, self.offset.layer, "values", self.support)
            self.values.copy_(values)
        else:
            self.values.zero_()
            norm = self.weight_law.norm(math.prod(self.offset.shape))
            self.alpha.fill_(initial_alpha(self._alpha_law, self.offset, norm))
        if self.bias is not None:
            outputs = torch.arange(len(self.bias), device=self.bias.device)
            self.bias.copy_(self.bias_law.draw(self.seed, self.offset.layer, "bias", outputs))

    @classmethod
    @abstractmethod
    def _arguments_of(cls, dense: nn.Module) -> dict[str, Any]:
        """The constructor's arguments that shape a layer like `dense`."""

    @classmethod
    def offset_shape(cls, dense: nn.Module) -> tuple[int, ...]:
        """The shape of D in a layer like `dense`: its weight's, two or four axes."""
        return tuple(dense.get_parameter("weight").shape)

    @classmethod
    def from_dense(
        cls,
        dense: nn.Linear | nn.Conv1d | nn.Conv2d,
        *,
        offset: OffsetChoice = "dct",
        density: float | None = None,
        nnz: int | None = None,
        support: Tensor | None = None,
        alpha: Alpha = "one",
        alpha_trainable: bool = True,
        init: Init = "dense",
        seed: int = 0,
        name: str = "",
        device: torch.device | str | None = None,
    ) -> Self:
        """The layer that replaces a dense one.

        Bias, dtype, training mode, hooks and frozenness are taken over. Under the `zero` offset so are the
        weights at the support, unless `init` draws them; under others S starts at 0. A layer on the meta
        device has no weights to take: values and bias are drawn by its laws (`dctps.initial`), on `device`.

        Args:
            dense: `nn.Linear` for `DpSLinear`, and so on.
            offset: D: a name, a class of offsets, or an `Offset` of the weight's shape.
            density: fraction of the weights that train; or
            nnz: their number; or
            support: their mask or positions. None of the three: the nonzeros of the dense weight, so
                that an already pruned layer is brought in as it is.
            alpha: `"one"`; `"match"` for ||W|| / ||D||, on the meta device with the norm that the weight's
                law leads to expect; or a number.
            alpha_trainable: whether alpha is trained.
            init: of the values under the `zero` offset, `"dense"` or `"fan-in"` (`dctps.initial.law_by`).
            seed: of the support and the offset.
            name: qualified name of the layer, which keys its draws together with the seed.
            device: of the new layer; by default the dense one's, or the CPU for a meta layer.

        Raises:
            ValueError: the nonzeros are needed of a layer on the meta device, or `init` does not fit.
        """
        weight = dense.weight
        if density is None and nnz is None and support is None:
            if weight.is_meta:
                raise ValueError(
                    "its nonzeros as the support needs the layer's weights, and this one is on the meta "
                    "device: build it for real"
                )
            support = weight != 0
        arguments = cls._arguments_of(dense)
        operator = build_offset(
            offset, cls.offset_shape(dense), groups=arguments.get("groups", 1), seed=seed, layer=name
        )
        law = law_by(init, law_of(dense, "weight"), operator.in_features)
        has_offset = not isinstance(operator, ZeroOffset)
        if init != "dense" and has_offset:
            where = f"under the offset 'zero', and under {operator.name!r} they start at 0"
            raise ValueError(f"init {init!r} is of values {where}: leave it out")
        if alpha == "match" and has_offset:
            alpha = initial_alpha(alpha, operator, _initial_norm(dense))
        layer = cls(
            **arguments,
            offset=operator,
            density=density,
            nnz=nnz,
            support=support,
            alpha=alpha,
            alpha_trainable=flag("alpha_trainable", alpha_trainable) and weight.requires_grad,
            seed=seed,
            device=device or ("cpu" if weight.is_meta else weight.device),
            dtype=weight.dtype,
        )
        layer.weight_law, layer.bias_law = law, law_of(dense, "bias")
        with torch.no_grad():
            if weight.is_meta or init != "dense":
                layer._draw()
            elif layer.alpha is None:
                layer.values.copy_(weight.reshape(-1)[layer.support.to(weight.device)])
            if dense.bias is not None and layer.bias is not None:
                if not dense.bias.is_meta:
                    layer.bias.copy_(dense.bias)
                layer.bias.requires_grad_(dense.bias.requires_grad)
        layer.values.requires_grad_(weight.requires_grad and layer.nnz > 0)
        for hooks in _HOOKS:
            setattr(layer, hooks, getattr(dense, hooks))
        return layer.train(dense.training)

    @abstractmethod
    def merged(self) -> nn.Linear | nn.Conv1d | nn.Conv2d:
        """The plain dense layer with the weight `to_dense()`."""

    def _merge_into(self, dense: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        """Give a meta-built dense layer this one's weight, bias, training mode, hooks and frozenness."""
        dense.weight = nn.Parameter(self.to_dense().detach(), self.values.requires_grad or not self.nnz)
        dense.bias = self.bias
        carry(dense, self.weight_law, self.bias_law)
        for hooks in _HOOKS:
            setattr(dense, hooks, getattr(self, hooks))
        dense.train(self.training)

    @property
    def density(self) -> float:
        """The fraction of weights that train, nnz / (out * in), in [0, 1]."""
        return self.nnz / math.prod(self.last_map.shape)

    def to_dense(self) -> Tensor:
        """W = alpha * D + S, made when asked, differentiable; of the weight's shape and the layer's dtype."""
        weight = dps_weight(self.values, self.support, self.offset, self.alpha)
        return weight.to(self.values.dtype)

    def _checked(self, x: Tensor) -> Tensor:
        """The input, computed if it waits behind a fused norm; TypeError for another dtype than W's."""
        if type(x) is not Tensor:  # a plain tensor is spared the call
            x = settled(x)
        if x.dtype != self.values.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"{type(self).__name__} holds {self.values.dtype} and its input is {x.dtype}: "
                f"convert one of them with .to(), or run under torch.autocast"
            )
        return x

    def _state_repr(self) -> str:
        alpha = "" if self.alpha is None or self.alpha.requires_grad else ", alpha_trainable=False"
        return f"offset={self.last_map.name!r}, nnz={self.nnz}, density={self.density:.4g}{alpha}"


def initial_alpha(alpha: Alpha, offset: Offset, norm: float) -> float:
    """Alpha's initial value.

    Args:
        alpha: `"one"`, `"match"` for norm / ||D|| (0 for a layer initialised to zero), or a number.
        offset: D.
        norm: Frobenius norm of the layer's own initialisation, for `"match"`.

    Raises:
        ValueError: another word.
    """
    if alpha == "one":
        return 1.0
    if alpha == "match":
        return norm / offset.norm()
    if isinstance(alpha, str):
        raise ValueError(f'alpha must be "one", "match" or a number, got {alpha!r}')
    return real("alpha", alpha)


def _initial_norm(dense: nn.Linear | nn.Conv1d | nn.Conv2d) -> float:
    """||W|| of the layer as it is initialised; on the meta device what its law leads to expect."""
    if dense.weight.is_meta:
        return law_of(dense, "weight").norm(dense.weight.numel())
    return float(torch.linalg.vector_norm(dense.weight.detach().double()))
