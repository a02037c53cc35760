"""Hooks of the build: the native kernels into the wheel, and a README that an index can show."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class KernelBuildHook(BuildHookInterface):
    """Runs `src/dctps/kernels/build.py`, which needs nothing but a C compiler.

    Without one the wheel is pure Python, and slower. HATCH_BUILD_NO_HOOKS=true asks for that wheel.
    """

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


class ReadmeHook(MetadataHookInterface):
    """Makes the README's links absolute: an index shows it without the files that it links to."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Links lead to the pages of `project.urls`' Source, pictures to the files there."""
        source = metadata["urls"]["Source"]
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = re.sub(r"""(!\[[^]]*\]\(|\bsrc=["'])(?!https?:)""", rf"\1{source}/raw/main/", text)
        text = re.sub(r"""(\]\(|\bhref=["'])(?!https?:|#)""", rf"\1{source}/blob/main/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
