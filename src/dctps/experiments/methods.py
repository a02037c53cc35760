"""Names for choices of offset, allocation, criterion and dynamics, or of a projection."""

from __future__ import annotations

from typing import NamedTuple

from dctps.names import Registry


class Method(NamedTuple):
    """What a method's name stands for; all None is the dense network, or its norms alone."""

    offset: str | None
    allocation: str | None
    criterion: str | None
    projection: str | None = None
    dynamics: str | None = None


METHODS: Registry[Method] = Registry("method")
METHODS.update(
    {
        "dctps": Method("dct", "epl", "random"),
        "sdctps": Method("sdct", "epl", "random"),
        **{f"random-{name}": Method("zero", name, "random") for name in ("uniform", "epl", "epf", "erk")},
        **{
            name: Method("zero", "global", name)
            for name in ("snip", "grasp", "force", "iter-snip", "synflow")
        },
        "magnitude": Method("zero", "global", "magnitude"),
        "dctps-rigl": Method("dct", "epl", "random", dynamics="rigl"),
        "sdctps-rigl": Method("sdct", "epl", "random", dynamics="rigl"),
        "rigl": Method("zero", "erk", "random", dynamics="rigl"),
        "set": Method("zero", "erk", "random", dynamics="set"),
        "dsr": Method("zero", "erk", "random", dynamics="dsr"),
        "imp": Method("zero", "global", "magnitude", dynamics="imp"),
        "hyperplane": Method(None, None, None, "auto"),
        "norms": Method(None, None, None),
        "dense": Method(None, None, None),
    }
)


def register_method(
    name: str, *, offset: str, allocation: str = "epl", criterion: str = "random", dynamics: str | None = None
) -> None:
    """Give a combination a name, which `--method`, sweeps, tables and figures then know.

    Args:
        name: for the method.
        offset: D, by name.
        allocation: how many weights each layer trains, by name.
        criterion: which weights these are, by name.
        dynamics: how the supports change, by name (None: they stay).

    Raises:
        ValueError: another method has the name.
    """
    METHODS.register(name)(Method(offset, allocation, criterion, dynamics=dynamics))
