"""The command lines that build what is missing or broken, for messages."""

from __future__ import annotations

import shlex

from natc import workspace
from natc.errors import TargetError
from natc.runtime.search import Library
from natc.spec import KernelSpec
from natc.targets import Target, detect_host_cpu

# What `natc build` assumes when it is not told.
_HEAD_DIM = 32
_DTYPE = {"llvm": "float32", "cuda": "float16"}


def build_command(spec: KernelSpec, targets: list[Target]) -> str:
    """Return the shortest command that builds a kernel for targets of one kind."""
    kind = targets[0].kind
    words = ["natc", "build", "--kernel", spec.kernel_text]
    if spec.rank != 2:
        words += ["--rank", str(spec.rank)]
    if spec.head_dim != _HEAD_DIM:
        words += ["--head-dim", str(spec.head_dim)]
    if spec.dtype != _DTYPE[kind]:
        words += ["--dtype", spec.dtype]
    if kind == "cuda":
        words += ["--target", "cuda", "--arch", ",".join(target.arch for target in targets)]
    else:
        words += ["--target", "llvm" if _is_host(targets[0]) else targets[0].name]
    return shlex.join(words)


def rebuild_command(library: Library) -> str:
    """Return the command that builds a library again, into the directory where it lies."""
    command = build_command(library.spec, library.targets)
    directory = library.manifest_path.parent
    if directory == workspace.library_dir():
        return command
    return f"{command} -o {shlex.quote(str(directory))}"


def _is_host(target: Target) -> bool:
    try:
        return target == detect_host_cpu()
    except TargetError:
        return False
