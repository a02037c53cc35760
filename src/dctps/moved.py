"""Modules that have moved: their old names still import, and what is in them loads when first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_NOW = {
    "dctps.experiments.cluster": ("dctps.stacks",),
    "dctps.experiments.grid": ("dctps.sweeps.grid",),
    "dctps.experiments.stacking": ("dctps.stacks",),
    "dctps.experiments.sweep": ("dctps.sweeps.sweep",),
    "dctps.experiments.workers": ("dctps.sweeps.workers", "dctps.sweeps.events"),
    "dctps.nn.identified": ("dctps.identity.identified",),
    "dctps.nn.identity": ("dctps.identity.packed",),
    "dctps.nn.initial": ("dctps.initial",),
    **{
        f"dctps.nn.{name}": (f"dctps.networks.{name}",)
        for name in ("conversion", "explanation", "norms", "surgery", "survey", "tuning")
    },
}


class _Moved(ModuleType):
    """Stands in the old place of a module."""

    def __getattr__(self, name: str) -> Any:
        # Python asks modules for names such as `__file__`, which must not load anything.
        for place in () if name.startswith("__") else _NOW[self.__name__]:
            module = import_module(place)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


for _name in _NOW:
    sys.modules.setdefault(_name, _Moved(_name))
