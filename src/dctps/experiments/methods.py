"""Names for choices of offset, allocation, criterion and dynamics."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What a method's name stands for; all None is the dense network."""

    offset: str | None
    allocation: str | None
    criterion: str | None
    dynamics: str | None = None


METHODS: dict[str, Method] = {
    "dctps": Method("dct", "epl", "random"),
    "sdctps": Method("sdct", "epl", "random"),
    "random-uniform": Method("zero", "uniform", "random"),
    "random-epl": Method("zero", "epl", "random"),
    "random-epf": Method("zero", "epf", "random"),
    "random-erk": Method("zero", "erk", "random"),
    "dctps-rigl": Method("dct", "epl", "random", "rigl"),
    "sdctps-rigl": Method("sdct", "epl", "random", "rigl"),
    "rigl": Method("zero", "erk", "random", "rigl"),
    "set": Method("zero", "erk", "random", "set"),
    "dsr": Method("zero", "erk", "random", "dsr"),
    "imp": Method("zero", "global", "magnitude", "imp"),
    "dense": Method(None, None, None),
}
