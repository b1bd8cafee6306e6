"""Puts what `compiled` makes of the hot modules into a wheel, when it is asked for: HATCH_BUILD_HOOKS_ENABLE=1.

A wheel without is good for every machine; one with them for one version of Python on one kind. An editable install
never has them: see there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
from compiled import compile_copy, extensions


class CompiledModules(BuildHookInterface):
    """hatchling's hook of the name `custom`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the results be files of the wheel."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="mvccstore-build-")
        folder = Path(self._folder.name) / "copy"
        compile_copy(folder)
        build_data["force_include"] |= {str(folder / path): str(path) for path in extensions(folder)}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take away what is in the wheel now."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()
