"""Kernels built by natc for this CPU, each operation once for all tests of a run."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import tvm_ffi

from natc import runtime
from natc.compiler.build import build_library
from natc.compiler.build.llvm import build_llvm
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS, operations_of
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget
from support.library_files import add_code, library_of


class BuiltKernels:
    """Library directories that fill as tests ask for kernels.

    Most tests need a few operations of many kernels. So operations are built one at a time, into
    libraries in directories of their own, and natc finds the library that a call needs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directories = [directory, *(directory / f"part{i}" for i in range(len(OPERATIONS)))]
        self._manifests: dict[KernelSpec, Path] = {}
        self._parts: dict[KernelSpec, dict[str, Path]] = defaultdict(dict)

    def manifest(self, spec: KernelSpec) -> Path:
        """Return the manifest of a whole kernel; build it, untuned, the first time."""
        if spec not in self._manifests:
            self._manifests[spec] = build_library(
                spec, detect_host_cpu(), self.directory, untuned=True
            )
            runtime.clear()  # natc.na2d is to find it as well
        return self._manifests[spec]

    def need(self, spec: KernelSpec, *operations: str) -> None:
        """Build operations of a kernel, by default all, unless they are built already."""
        if spec in self._manifests:
            return
        parts = self._parts[spec]
        every = operations or operations_of(spec, kind="llvm")
        missing = [name for name in every if name not in parts]
        if missing:
            number = len(set(parts.values()))
            manifest = build_part(spec, missing, self.directories[1 + number])
            parts.update(dict.fromkeys(missing, manifest))
            runtime.clear()

    def need_attention(self, spec: KernelSpec) -> None:
        """Build attention with its logsumexp, and its gradients."""
        self.need(spec, "forward_lse", *operations_of(spec, ("backward",), "llvm"))

    def need_operators(self, spec: KernelSpec) -> None:
        """Build the operators qk and av; their gradients are operators without a bias."""
        self.need(dataclasses.replace(spec, rpb=False), "qk", "av", "inverse_av")
        if spec.rpb:
            self.need(spec, "qk", "sum_rpb")

    def function(self, spec: KernelSpec, operation: str = "forward") -> Any:
        """Return the packed function of an operation."""
        self.need(spec, operation)
        return open_entry(self._manifests.get(spec) or self._parts[spec][operation], operation)


def build_part(spec: KernelSpec, operations: list[str], directory: Path) -> Path:
    """Build a library of a kernel that has only some operations; return its manifest's path."""
    target = detect_host_cpu()
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "part.so"
        build_llvm(spec, target, {}, library, Path(scratch), entries=operations)
        code = library.read_bytes()
    place = LibraryTarget(target.kind, (target.arch,))
    return add_code(directory, code, spec, place, operations)


def open_entry(manifest: Path, entry: str, arch: str = "llvm") -> Any:
    """Return the packed function of an entry of a library."""
    content = json.loads(manifest.read_text())
    module = tvm_ffi.load_module(str(library_of(manifest)))
    return module[content["entries"][entry][arch]]
