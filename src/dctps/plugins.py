"""Plugins: modules of a user that register offsets, methods, networks and the like. Each is loaded once.

This module does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

GROUP = "dctps.plugins"
_loaded: dict[str, None] = {}  # in the order in which they were loaded
_installed: list[str] = []


def load_plugins(*plugins: str) -> None:
    """Load plugins; every `RunConfig` that is made from then on records them.

    So a run that goes on later, a worker of a sweep, or a task of Ray loads the same plugins by itself.

    Args:
        plugins: names of modules that can be imported, or paths of `.py` files.

    Raises:
        ValueError: a plugin is not there, or fails while it is imported; the message says why.
    """
    for plugin in map(full_name, plugins):
        if plugin in _loaded:
            continue
        if plugin.endswith(".py") and not Path(plugin).is_file():
            raise ValueError(
                f"the plugin {plugin} is not there: give --plugin the name of a module, or the path of "
                f"a .py file"
            )
        try:
            _import(plugin)
        except Exception as error:  # a plugin may do anything
            raise ValueError(
                f"the plugin {plugin} cannot be loaded ({type(error).__name__}: {error})"
            ) from error
        _loaded[plugin] = None


def loaded_plugins() -> tuple[str, ...]:
    """The plugins that this process has loaded by `load_plugins`."""
    return tuple(_loaded)


def load_installed() -> bool:
    """Load the plugins of installed packages, which name them as entry points of the group `dctps.plugins`.

    Returns:
        Whether there were any that were not loaded before.

    Raises:
        ValueError: a plugin fails while it is imported.
    """
    found = [point for point in entry_points(group=GROUP) if point.name not in _installed]
    for point in found:
        _installed.append(point.name)
        try:
            point.load()
        except Exception as error:
            raise ValueError(
                f"the installed plugin {point.name!r} ({point.value}) cannot be loaded "
                f"({type(error).__name__}: {error}): mend or uninstall its package"
            ) from error
    return bool(found)


def full_name(plugin: str) -> str:
    """The plugin's name in any working directory: an absolute path, or the name of a module as it is."""
    return str(Path(plugin).expanduser().resolve()) if plugin.endswith(".py") else plugin


def _import(plugin: str) -> None:
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    name = f"dctps_plugin_{Path(plugin).stem}"
    spec = importlib.util.spec_from_file_location(name, plugin)
    assert spec is not None and spec.loader is not None, "the file ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
