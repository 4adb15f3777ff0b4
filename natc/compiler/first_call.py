"""Builds the operations that a call waits for: the program that `natc.runtime.jit` runs.

    python -m natc.compiler.first_call SPEC TARGET GROUP [--if-missing]

`natc build` builds the same code; it loads a command line first, and builds every operation.
"""

from __future__ import annotations

import sys

from natc.compiler.import_tvm import import_tvm_alone
from natc.errors import LibraryError, NatcError
from natc.operations import operations_called
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.files import locked
from natc.store.manifest import SUFFIX, load_manifest
from natc.targets import Target

IF_MISSING = "--if-missing"


def build(spec: KernelSpec, target: Target, group: str) -> None:
    """Build a group of operations (`natc.operations.CALLED_TOGETHER`) into its directory.

    Raises the errors of `build_library`.
    """
    import_tvm_alone(target.kind)
    from natc.compiler.build import build_library

    build_library(
        spec,
        target,
        workspace.jit_dir(group),
        operations=operations_called(spec, group),
        # This system runs it, and its own C compiler starts faster than ziglang's.
        portable=False,
    )


def build_if_missing(spec: KernelSpec, target: Target, group: str) -> None:
    """Build as `build` does, unless the library is there; holds the lock of a call's build.

    Raises Locked, too: another process builds it.
    """
    directory = workspace.jit_dir(group)
    name = f"{spec.name}.{target.name}"
    with locked(directory, f".{name}.lock", wait=False):
        try:
            manifest = load_manifest(directory / f"{name}{SUFFIX}")
        except LibraryError:
            pass
        else:
            wanted = operations_called(spec, group)
            if (directory / manifest.library).is_file() and {*wanted} <= {*manifest.entries}:
                return
        build(spec, target, group)


def main(arguments: list[str]) -> int:
    """Build the group that the arguments name; if it fails, print why on stderr and return 1."""
    spec_name, target_name, group, *options = arguments
    build_it = build_if_missing if IF_MISSING in options else build
    try:
        build_it(KernelSpec.parse(spec_name), Target.parse(target_name), group)
    except NatcError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
