"""The command lines that build a missing or broken library, for messages."""

from __future__ import annotations

import shlex

from natc.errors import TargetError
from natc.host.detect import detect_host_cpu
from natc.operations import FAMILIES, OPERATIONS, operations_of
from natc.runtime.scan import Library
from natc.spec import KernelSpec
from natc.store import workspace
from natc.targets import Target

# The defaults of `natc build`.
_HEAD_DIM = 32
_DTYPE = {"llvm": "float32", "cuda": "float16"}


def build_command(
    spec: KernelSpec, targets: list[Target], families: tuple[str, ...] = FAMILIES
) -> str:
    """Return the shortest command that builds a kernel for targets of one kind.

    families: of operations, in the names of `natc.operations`.
    """
    return shlex.join(build_words(spec, targets, families))


def build_words(
    spec: KernelSpec, targets: list[Target], families: tuple[str, ...] = FAMILIES
) -> list[str]:
    """Return the words of `build_command`."""
    kind = targets[0].kind
    words = ["natc", "build", "--kernel", spec.kernel_text]
    # A kernel size with a number for each axis says the rank.
    if spec.rank != 2 and "x" not in spec.kernel_text:
        words += ["--rank", str(spec.rank)]
    if spec.head_dim != _HEAD_DIM:
        words += ["--head-dim", str(spec.head_dim)]
    if spec.value_dim != spec.head_dim:
        words += ["--value-dim", str(spec.value_dim)]
    if spec.dtype != _DTYPE[kind]:
        words += ["--dtype", spec.dtype]
    if spec.terms:
        words += ["--terms", ",".join(spec.terms)]
    if operations_of(spec, families) != operations_of(spec):
        words += ["--operations", ",".join(families)]
    if kind == "cuda":
        words += ["--target", "cuda", "--arch", ",".join(target.arch for target in targets)]
    else:
        words += ["--target", "llvm" if _is_host(targets[0]) else targets[0].name]
    return words


def rebuild_command(library: Library) -> str:
    """Return the command that builds a library again, into the directory where it lies."""
    command = build_command(library.spec, library.targets, families_of(library))
    directory = library.manifest_path.parent
    if directory == workspace.library_dir():
        return command
    return f"{command} -o {shlex.quote(str(directory))}"


def families_of(library: Library) -> tuple[str, ...]:
    """Return the families of operations that a library holds, whole or in part."""
    names = {OPERATIONS[name].family for name in library.manifest.entries if name in OPERATIONS}
    return tuple(family for family in FAMILIES if family in names)


def _is_host(target: Target) -> bool:
    try:
        return target == detect_host_cpu()
    except TargetError:
        return False
