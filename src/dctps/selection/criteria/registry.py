"""What a criterion is, and names for them.

A criterion is a function `(model, layers, loss, batches)` of a network: of the dense one, or of the converted
one whose S is still 0. One that looks once returns `{layer: scores}`, each of its weight's shape; the largest
are kept. In place of a layer's scores it may give an iterator over them, block by block, so that they are
never there as a whole. One that looks several times is a generator: each `kept = yield scores, progress`
hands over scores, and is sent the masks of what the schedule keeps at `progress` in (0, 1]; the last masks
are the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn

from dctps.names import Registry, lookup

Loss = Callable[[nn.Module, Any], Tensor]
Layers = Mapping[str, nn.Module]
Batches = Iterable[Any]
Scores = Mapping[str, Tensor]
ScoreBlocks = Mapping[str, Iterator[Tensor]]
Masks = dict[str, Tensor]
Rounds = Generator[tuple[Scores, float], Masks, None]
Criterion = Callable[[nn.Module, Layers, Loss, Batches], Scores | ScoreBlocks | Rounds]
CriterionT = TypeVar("CriterionT", bound=Callable[..., Any])

UNSCORED = ("random", "nonzero")
CRITERIA: Registry[Criterion] = Registry("criterion", reserved=UNSCORED)


def register_criterion(name: str, *, on_converted: bool = False) -> Callable[[CriterionT], CriterionT]:
    """Decorator that gives a criterion its name.

    Args:
        name: for `sparsify_` and the command line.
        on_converted: whether it scores the converted network, W = alpha * D + S with S still 0: `layers` are
            then its DpS layers. If not, it scores the dense network.

    Raises:
        ValueError: another criterion has the name.
    """
    register = CRITERIA.register(name)

    def put(criterion: CriterionT) -> CriterionT:
        criterion.on_converted = on_converted  # type: ignore[attr-defined]
        return register(criterion)

    return put


def list_criteria() -> list[str]:
    """All names, the two that need no scores first."""
    return [*UNSCORED, *CRITERIA]


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The scoring function behind a name, ValueError if there is none; a function is itself."""
    if isinstance(criterion, str):
        return CRITERIA[lookup("criterion", {name: name for name in list_criteria()}, criterion)]
    if not callable(criterion):
        raise ValueError(
            f"a criterion is a name, a function (model, layers, loss, batches), or masks by layer, got "
            f"{criterion!r}"
        )
    return criterion


def is_on_converted(criterion: Criterion) -> bool:
    """Whether it scores the converted network."""
    return bool(getattr(_bare(criterion), "on_converted", False))


def is_criterion(choice: object) -> TypeGuard[str | Criterion]:
    """Whether it is a registered criterion or its name, also one that `functools.partial` gave options."""
    choice = _bare(choice)
    return choice in CRITERIA if isinstance(choice, str) else any(choice is f for f in CRITERIA.values())


def name_of(criterion: str | Criterion) -> str:
    """What to call a criterion in messages."""
    bare = _bare(criterion)
    if isinstance(bare, str):
        return bare
    registered = (name for name, function in CRITERIA.items() if function is bare)
    return next(registered, getattr(bare, "__name__", repr(bare)))


def _bare(choice: object) -> object:
    while isinstance(choice, functools.partial):
        choice = choice.func
    return choice
