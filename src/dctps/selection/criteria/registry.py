"""What a criterion is, and names for them.

A criterion is a function `(model, layers, loss, batches)` of the dense network. One that looks once returns
`{layer: scores}`, each of its weight's shape; the largest are kept. One that looks several times is a
generator: each `kept = yield scores, progress` hands over scores, and is sent the masks of what the schedule
keeps at `progress` in (0, 1]; the last masks are the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from dctps.names import Registry, lookup

Loss = Callable[[nn.Module, Any], Tensor]
Layers = Mapping[str, nn.Module]
Batches = Iterable[Any]
Scores = Mapping[str, Tensor]
Masks = dict[str, Tensor]
Rounds = Generator[tuple[Scores, float], Masks, None]
Criterion = Callable[[nn.Module, Layers, Loss | None, Batches | None], Scores | Rounds]

UNSCORED = ("random", "nonzero")
ON_OFFSET = ("offset-snip", "offset-gradient")
CRITERIA: Registry[Criterion] = Registry("criterion", reserved=(*UNSCORED, *ON_OFFSET))


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Decorator that gives a criterion its name.

    Raises:
        ValueError: the name is taken.
    """
    return CRITERIA.register(name)


def list_criteria() -> list[str]:
    """All names, the two that need no scores first."""
    return [*UNSCORED, *CRITERIA, *ON_OFFSET]


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The scoring function behind a name; a function is itself.

    Raises:
        ValueError: no such name; the message gives the nearest.
    """
    if isinstance(criterion, str):
        return CRITERIA[lookup("criterion", {name: name for name in list_criteria()}, criterion)]
    return criterion


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
