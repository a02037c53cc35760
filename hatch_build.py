"""Compiles the native kernels into the wheel; without a compiler the wheel is pure Python, and slower."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):
    """Runs `src/dctps/kernels/build.py`, which needs nothing but a C compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tag the wheel with the platform alone: the library has no Python ABI."""
        spec = importlib.util.spec_from_file_location(
            "kernel_build", Path(self.root, "src", "dctps", "kernels", "build.py")
        )
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            library = build.compile_library(on_note=self.app.display_info)
        except build.CompileError as error:
            self.app.display_warning(f"dctps: no native kernels, slower torch operations will serve. {error}")
            return
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = build.platform_tag()
