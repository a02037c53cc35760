"""Names for choices of offset, allocation and criterion, or of a projection."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What a method's name stands for; all None is the dense network."""

    offset: str | None
    allocation: str | None
    criterion: str | None
    projection: str | None = None


METHODS: dict[str, Method] = {
    "dctps": Method("dct", "epl", "random"),
    "sdctps": Method("sdct", "epl", "random"),
    "random-uniform": Method("zero", "uniform", "random"),
    "random-epl": Method("zero", "epl", "random"),
    "random-epf": Method("zero", "epf", "random"),
    "random-erk": Method("zero", "erk", "random"),
    "snip": Method("zero", "global", "snip"),
    "grasp": Method("zero", "global", "grasp"),
    "force": Method("zero", "global", "force"),
    "iter-snip": Method("zero", "global", "iter-snip"),
    "synflow": Method("zero", "global", "synflow"),
    "magnitude": Method("zero", "global", "magnitude"),
    "hyperplane": Method(None, None, None, "auto"),
    "dense": Method(None, None, None),
}
