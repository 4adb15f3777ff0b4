"""Kernels built by natc for this CPU, each once for all tests of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tvm_ffi

from natc import runtime
from natc.build import build_library
from natc.spec import KernelSpec
from natc.targets import detect_host_cpu


class BuiltKernels:
    """A library directory that fills as tests ask for kernels."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._manifests: dict[KernelSpec, Path] = {}

    def manifest(self, spec: KernelSpec) -> Path:
        """Return the manifest of a kernel; build the kernel, untuned, the first time."""
        if spec not in self._manifests:
            self._manifests[spec] = build_library(
                spec, detect_host_cpu(), self.directory, untuned=True
            )
            runtime.clear()  # natc.na2d is to find it as well
        return self._manifests[spec]

    def function(self, spec: KernelSpec, entry: str = "forward") -> Any:
        """Return the packed function of an entry, `forward` or `forward_lse`."""
        return open_entry(self.manifest(spec), entry)


def open_entry(manifest: Path, entry: str, arch: str = "llvm") -> Any:
    """Return the packed function of an entry of a library."""
    content = json.loads(manifest.read_text())
    module = tvm_ffi.load_module(str(manifest.with_name(content["library"])))
    return module[content["entries"][entry][arch]]
