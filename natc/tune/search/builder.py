"""Builds one candidate, in a separate process: a build may crash or hang.

Arguments and results are plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.temporary import temporary_directory
from natc.targets import Target


class BuiltCandidate(NamedTuple):
    """The result of building a candidate.

    useless: why it is not worth measuring, or None; only GPU kernels can be judged so. features:
    numbers about its machine code, which a search's model learns from.
    """

    useless: str | None
    features: dict[str, float]


def build(
    spec_name: str,
    target_name: str,
    decisions: Mapping[str, int],
    output: str,
    operation: str = FORWARD,
    may_spill: bool = False,
    portable: bool = False,
) -> BuiltCandidate:
    """Compile an operation of a candidate into the library `output`; return what its code is like.

    may_spill: accept a kernel that spills registers. portable: link for systems older than this
    one (see `natc.host.c_compiler.link_library`). Raises the errors of `build_library`.
    """
    from natc.compiler.import_tvm import import_tvm_alone

    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    import_tvm_alone(target.kind)
    from natc.compiler.build.cuda import build_cuda
    from natc.compiler.build.llvm import ASSEMBLY, build_llvm
    from natc.compiler.build.lower import most_shared_bytes
    from natc.compiler.build.object_features import object_features, useful_multiply_adds
    from natc.compiler.build.resources import features_of, hopeless, measured, resources
    from natc.store.schedules import joined

    own = joined(decisions, operation)
    options: dict[str, Any] = {"entries": [operation], "portable": portable}
    with temporary_directory("candidate") as directory:
        if target.kind == "llvm":
            options["keep_assembly"] = True
            build_llvm(spec, target, own, Path(output), directory, **options)
            assembly = (directory / ASSEMBLY).read_text()
            useful = useful_multiply_adds(spec, operation)
            return BuiltCandidate(None, object_features(assembly, useful))
        build_cuda(spec, {target: own}, Path(output), directory, **options)
        report = (directory / f"{target.arch}.ptxas").read_text()
        source = (directory / f"{target.arch}.cu").read_text()
        kernels = measured(resources(report, source), source)
        useless = hopeless(kernels, target, most_shared_bytes(target), may_spill=may_spill)
        return BuiltCandidate(useless, features_of(kernels))
