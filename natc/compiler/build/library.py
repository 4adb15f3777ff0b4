"""build_library: compiles kernels into a shared object and writes its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from natc.compiler.build.chosen import Chosen, choose
from natc.compiler.build.cuda import build_cuda, newest
from natc.compiler.build.llvm import build_llvm
from natc.errors import BuildError, ScheduleError
from natc.host import environment
from natc.host.c_compiler import cuda_version
from natc.operations import FAMILIES, operations_of
from natc.spec import CUDA_DTYPES, KernelSpec, compiles
from natc.store import elf, workspace
from natc.store.files import make_directory
from natc.store.libraries import write_library
from natc.store.manifest import LibraryTarget, Manifest, entries_of
from natc.store.temporary import temporary_directory
from natc.targets import Target


def build_library(
    spec: KernelSpec,
    target: Target | Sequence[Target],
    output_dir: Path | str,
    *,
    on_note: Callable[[str], None] | None = None,
    untuned: bool = False,
    families: Sequence[str] = FAMILIES,
    operations: Sequence[str] | None = None,
    portable: bool = True,
) -> Path:
    """Compile a kernel into a library directory and return the manifest's path.

    target: one CPU, or one or more CUDA architectures that share a library. on_note: called with a
    sentence on the schedule of each target. untuned: ignore schedules. families: which
    operations (`natc.operations.FAMILIES`); operations: some of these, by name. portable: link for
    older systems, too (see `natc.host.c_compiler.link_library`). An older library of the same spec
    and target is replaced. Raises BuildError, also for a spec without kernels,
    CompilerNotFound, ScheduleError, and NatcError for a directory that cannot be written.
    """
    targets = [target] if isinstance(target, Target) else sorted(set(target), key=_age)
    operations = _check(spec, targets, families, operations)
    directory = make_directory(output_dir)
    chosen = {
        target: choose(spec, target, untuned=untuned, operations=operations) for target in targets
    }
    for decided in chosen.values():
        if on_note is not None:
            on_note(decided.note)

    kind = targets[0].kind
    library_target = LibraryTarget(kind, tuple(target.arch for target in targets))
    with temporary_directory("build") as scratch:
        output = scratch / f"{spec.name}.{library_target.name}.so"
        decisions = {target: decided.decisions for target, decided in chosen.items()}
        try:
            if kind == "llvm":
                own = decisions[targets[0]]
                build_llvm(
                    *(spec, targets[0], own, output, scratch),
                    entries=operations,
                    portable=portable,
                )
            else:
                build_cuda(
                    *(spec, decisions, output, scratch), entries=operations, portable=portable
                )
        except ScheduleError as error:
            raise ScheduleError(f"{_files(chosen)} cannot be built: {error}") from error
        code = output.read_bytes()
    manifest = _manifest(spec, library_target, code, operations, chosen)
    if on_note is not None and elf.parse_version(manifest.glibc) > elf.PORTABLE_GLIBC:
        on_note(_old_systems(manifest.glibc))
    return write_library(directory, manifest, code)


def _old_systems(glibc: str) -> str:
    ceiling = ".".join(map(str, elf.PORTABLE_GLIBC))
    return (
        f"the library needs glibc {glibc} or newer, as this system's C compiler links; with "
        f"ziglang installed and NATC_CC unset, it runs on glibc {ceiling} and newer."
    )


def _files(chosen: Mapping[Target, Chosen]) -> str:
    """Return the names of the schedule files that decisions come from, for a message."""
    paths = [
        str(workspace.find_schedule(KernelSpec.parse(schedule.spec), target, schedule.operation))
        for target, decided in chosen.items()
        for schedule in (decided.schedule, *decided.other_schedules)
        if schedule is not None
    ]
    return f"schedule {', '.join(paths)}" if paths else "the untuned schedule"


def _check(
    spec: KernelSpec,
    targets: Sequence[Target],
    families: Sequence[str],
    wanted: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the operations to build."""
    kinds = {target.kind for target in targets}
    if len(kinds) != 1 or (kinds == {"llvm"} and len(targets) != 1):
        names = ", ".join(target.name for target in targets) or "none"
        raise BuildError(
            f"target is {names}; a library is for one CPU target, or for one or more CUDA "
            "architectures."
        )
    if not compiles(spec.dtype, targets[0].kind):
        raise BuildError(
            f"dtype is {spec.dtype}; kernels for cuda are {', '.join(CUDA_DTYPES)}. There, "
            "natc.reference serves it."
        )
    unknown = [family for family in families if family not in FAMILIES]
    operations = operations_of(spec, tuple(families), targets[0].kind)
    if unknown or not operations:
        raise BuildError(
            f"operations is {', '.join(families) or 'empty'}; it must be some of "
            f"{', '.join(FAMILIES)}; {spec.name} has "
            f"{', '.join(f for f in FAMILIES if operations_of(spec, (f,)))}."
        )
    if wanted is None:
        return operations
    missing = [name for name in wanted if name not in operations]
    if missing or not wanted:
        raise BuildError(
            f"operations is {', '.join(wanted) or 'empty'}; {spec.name} has "
            f"{', '.join(operations)}."
        )
    return tuple(wanted)


def _manifest(
    spec: KernelSpec,
    target: LibraryTarget,
    code: bytes,
    operations: Sequence[str],
    chosen: dict[Target, Chosen],
) -> Manifest:
    versions = environment.versions()
    git = environment.git_state()
    tools: dict[str, str | None] = {}
    if target.kind == "cuda":
        tools["cuda"] = ".".join(map(str, cuda_version()))
    return Manifest(
        natc=versions["natc"] or "",
        spec=spec.name,
        target=target,
        sha256=hashlib.sha256(code).hexdigest(),
        entries=entries_of(spec, chosen, operations),
        schedule={each.arch: decided.record() for each, decided in chosen.items()},
        ptx=newest(chosen).arch if target.kind == "cuda" else "",
        glibc=_glibc(code),
        versions={name: versions.get(name) for name in ("natc", "tvm", "tvm_ffi")} | tools,
        built_at=environment.now(),
        provenance=msgspec.to_builtins(git) if git is not None else {},
    )


def _glibc(code: bytes) -> str:
    """Return the version of glibc that a library needs, or "": it needs none, or is not ELF."""
    try:
        return elf.read(code).glibc_text
    except elf.ElfError:
        return ""


def _age(target: Target) -> tuple[str, int]:
    digits = "".join(c for c in target.arch if c.isdigit())
    return target.kind, int(digits or 0)
