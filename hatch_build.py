"""Builds kernels into natc's own wheel, if the compiler is installed where the wheel is built.

`pyproject.toml` names the kernels. Without the compiler, the wheel has no kernels.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The compiler, and the linker for every Linux since 2019 and for other processors.
_NEEDED = {"tvm": "apache-tvm", "ziglang": "ziglang"}
# These would put schedules of the user, or a library that only new systems run, into the wheel.
_UNWANTED = ("NATC_WORKSPACE", "NATC_CC")
_FOLDER = "natc/_data/lib"


class OwnKernels(BuildHookInterface):
    """Adds libraries to the folder that natc searches last."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernels, and include them in the wheel; an editable install has none."""
        if version == "editable":
            return
        missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
        if missing:
            self.app.display_warning(
                f"This wheel of natc holds no kernels, for want of {' and '.join(missing)}. With "
                "the compiler extra installed, and without build isolation, it would hold some."
            )
            return
        self._scratch = TemporaryDirectory(prefix="natc-wheel-")
        scratch = Path(self._scratch.name)
        for number, archs in enumerate(self.config["archs"]):
            packed, libraries = scratch / f"packed-{number}", scratch / "libraries"
            self._package(archs, packed)
            for archive in packed.glob("*.zip"):
                with ZipFile(archive) as files:
                    for info in files.infolist():
                        info.filename = Path(info.filename).name
                        files.extract(info, libraries)
        for path in sorted(libraries.iterdir()):
            build_data["force_include"][str(path)] = f"{_FOLDER}/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the kernels' files, which are in the wheel now."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()

    def _package(self, archs: str, directory: Path) -> None:
        """Run `natc package` of this checkout."""
        kept = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
        words = [*shlex.split(self.config["kernels"]), "--target", "llvm", "--arch", archs]
        subprocess.run(
            [sys.executable, "-m", "natc", "package", *words, "--format", "zip", "-o", directory],
            cwd=self.root,
            env={**kept, "PYTHONPATH": self.root},
            # Its report is about a package that nobody will install.
            stdout=subprocess.DEVNULL,
            check=True,
        )
