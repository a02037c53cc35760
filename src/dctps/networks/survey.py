"""What in a network can be converted, what is left alone and why, and the network written in plain layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from dctps.networks.conversion import DPS_CLASS, expand, find_conversion
from dctps.networks.norms import NORM_LAYERS
from dctps.networks.surgery import Mergeable, named_modules, replace_
from dctps.nn.adapter import adapters_of
from dctps.nn.layer import DpSLayer

_WHY_NOT: list[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str]] = [
    ((nn.RNNBase, nn.RNNCellBase), "a recurrent layer is one fused function of all its weights"),
    ((nn.Embedding, nn.EmbeddingBag), "its rows are looked up, not multiplied"),
    (_ConvTransposeNd, "transposed convolutions have no DpS form"),
    (nn.Conv3d, "convolutions along three axes have no DpS form"),
    (nn.Bilinear, "products of two inputs have no DpS form"),
]


@dataclass(frozen=True)
class Found:
    """A module with weight matrices that is no DpS layer.

    Attributes:
        name: qualified, without wrappers' prefixes.
        module: a plain layer, a module of a registered class with all that is in it, or any other.
        matrices: its weights.
        reason: why it is left alone; empty for one that can be converted.
    """

    name: str
    module: nn.Module
    matrices: list[Tensor]
    reason: str


def survey(model: nn.Module) -> list[Found]:
    """Every module that has weight matrices and is no DpS layer, in the network's order.

    Norms, biases and other vectors are no matrices.
    """
    found: list[Found] = []
    inside: set[nn.Module] = set()
    owners = _owners(model)
    compiled = {child for m in model.modules() for key, child in m._modules.items() if key == "_orig_mod"}
    held = {inner for m in model.modules() if isinstance(m, Mergeable) for inner in m.modules()}
    for name, module in named_modules(model):
        if module in inside or isinstance(module, (DpSLayer, *NORM_LAYERS)):
            continue
        is_whole = (
            type(module) in DPS_CLASS or find_conversion(type(module)) or parametrize.is_parametrized(module)
        )
        parts = list(module.modules()) if is_whole else [module]
        inside.update(parts)
        own = [(key, tensor) for part in parts for key, tensor in part._parameters.items()]
        matrices: list[Tensor] = [
            tensor for key, tensor in own if tensor is not None and _is_matrix(key, tensor)
        ]
        if matrices or any(tensor is not None and is_lazy(tensor) for _, tensor in own):
            around = {_HELD: module in held, _LONE: module in compiled, _ADAPTED: adapters_of(module)}
            reasons: Iterable[str] = [reason for reason, holds in around.items() if holds]
            reasons = reasons or _why_not(module, parts, owners)
            found.append(Found(name, module, matrices, next(iter(reasons), "")))
    return found


FROZEN = "frozen: sparsify_ takes it with convert_frozen=True"


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has weight matrices, of which none trains: a part that is to stay as it is."""
    own = (item for part in module.modules() for item in part._parameters.items())
    matrices = [tensor for key, tensor in own if tensor is not None and _is_matrix(key, tensor)]
    return bool(matrices) and not any(tensor.requires_grad for tensor in matrices)


class Expanded:
    """A network in which every module of a registered class is written in plain layers.

    A context: an error inside puts everything back, and without one `close` says what stays.

    Args:
        model: changed in place.
        wanted: `wanted(module, name)` is False for one to leave as it is.

    Attributes:
        model: with its root replaced, should that be of a registered class.
        originals: by what stands in their place.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[nn.Module, str], bool]) -> None:
        self.model, self._wanted = model, wanted
        self.originals: dict[nn.Module, nn.Module] = {}

    def __enter__(self) -> Self:
        try:
            self._expand()
        except BaseException:
            self.close(())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close(())

    def _expand(self) -> None:
        left: set[nn.Module] = set()
        while True:  # an expansion may hold modules of registered classes in its turn
            replacements = {}
            for found in survey(self.model):
                module = found.module
                if (
                    found.reason
                    or find_conversion(type(module)) is None
                    or module in left | {*self.originals}
                ):
                    continue
                if self._wanted(module, found.name):
                    replacements[module] = expand(module)
                else:
                    left.add(module)
            if not replacements:
                break
            self.model = replace_(self.model, replacements)
            self.originals.update({expansion: module for module, expansion in replacements.items()})

    def close(self, converted: Collection[nn.Module]) -> None:
        """Put back each original in whose expansion nothing is to be converted; give the rest own memory."""
        for expansion, original in reversed(list(self.originals.items())):
            if not any(module in converted for module in expansion.modules()):
                self.model = replace_(self.model, {expansion: original})
                continue
            for module in {*expansion.modules()} - {*converted}:
                for tensor in module.parameters(recurse=False):
                    if not tensor.is_meta and tensor.untyped_storage().nbytes() > tensor.nbytes:
                        tensor.data = tensor.data.clone()


_HELD = "the module around it computes with its weights: merge_ makes that a plain network"
_ADAPTED = "it carries adapters: merge_ puts the one in use into its weight"
_LONE = "it is compiled by itself: convert it first, then compile"


def _owners(model: nn.Module) -> dict[int, dict[nn.Module, str]]:
    """By each parameter's id, the modules that hold it and their names."""
    owners: dict[int, dict[nn.Module, str]] = defaultdict(dict)
    for name, module in named_modules(model):
        for parameter in module._parameters.values():
            owners[id(parameter)][module] = name
    owners.pop(id(None), None)
    return owners


def _is_matrix(key: str, tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.dim() < 2:
        return False
    return key == "weight" or sum(size > 1 for size in tensor.shape) > 1


def _why_not(
    module: nn.Module, parts: list[nn.Module], owners: dict[int, dict[nn.Module, str]]
) -> Iterator[str]:
    """Why a module cannot be converted, the first reason first; nothing for one that can."""
    tensors = [tensor for part in parts for tensor in part._parameters.values() if tensor is not None]
    if any(map(is_lazy, tensors)):
        yield "its shape is not known yet: call the model once, then convert"
    if parametrize.is_parametrized(module):
        yield "parametrised: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    is_plain = type(module) in DPS_CLASS
    if not is_plain and find_conversion(type(module)) is None:
        bases = [base for base in type(module).__mro__ if base in DPS_CLASS or find_conversion(base)]
        if bases:
            yield f"a subclass of {bases[0].__name__}, which may differ: see register_conversion"
        yield from (reason for kinds, reason in _WHY_NOT if isinstance(module, kinds))
        yield "no conversion is registered for its class"
    if is_plain and "weight" not in module._parameters:
        yield "a hook makes its weight: prune.remove or remove_weight_norm makes it plain"
    for tensor in tensors:
        if type(tensor) is not nn.Parameter:
            yield f"a parameter of it is a {type(tensor).__name__}"
        if not tensor.is_floating_point() or not tensor.numel():
            yield f"a parameter of it is {tensor.dtype} of shape {tuple(tensor.shape)}"
        for other, name in owners[id(tensor)].items():
            if other not in parts:
                yield f"it shares a parameter with {name!r}: converting would untie them"
    if not is_plain:
        try:
            expand(module)
        except ValueError as error:
            yield str(error)
