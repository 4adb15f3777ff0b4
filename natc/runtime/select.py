"""The choice of the library that serves a kernel on a device, from libraries and facts alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from natc.runtime.facts import Facts
from natc.runtime.scan import Library, Rejection
from natc.spec import KernelSpec
from natc.store.elf import parse_version
from natc.store.manifest import Manifest
from natc.targets import ARCHS, Target


@dataclass(frozen=True, slots=True)
class Choice:
    """The code that serves a call: a library, the target in it, and the exported function."""

    library: Library
    target: Target
    function: str


def select(
    libraries: Iterable[Library], spec: KernelSpec, facts: Facts, *, operation: str = "forward"
) -> tuple[Choice | None, list[Rejection]]:
    """Return the library that runs a kernel on a device, and why each of the others does not.

    Args:
        libraries: in search order. The first directory with a fitting library wins; within it,
            the code for the newest architecture.
        operation: a name of `natc.operations`.

    Returns:
        The choice, or None if no library fits, and a Rejection for each library passed over.
    """
    fitting: list[Choice] = []
    rejections: list[Rejection] = []
    for library in libraries:
        choice_or_reason = _fit(library, spec, facts, operation)
        if isinstance(choice_or_reason, Choice):
            fitting.append(choice_or_reason)
        else:
            rejections.append(Rejection(library.manifest_path, choice_or_reason))
    if not fitting:
        return None, rejections
    first = fitting[0].library.manifest_path.parent
    here = [choice for choice in fitting if choice.library.manifest_path.parent == first]
    best = max(here, key=_generation)
    rejections += [
        Rejection(
            choice.library.manifest_path, f"{best.library.manifest_path} is newer or comes first"
        )
        for choice in fitting
        if choice is not best
    ]
    return best, rejections


def _fit(library: Library, spec: KernelSpec, facts: Facts, operation: str) -> Choice | str:
    """Return the choice of a library for a kernel, or the reason why it does not fit."""
    manifest = library.manifest
    if manifest.spec != spec.name:
        return f"implements {manifest.spec}"
    functions = manifest.entries.get(operation)
    if functions is None:
        return f"has no {operation}, only {', '.join(sorted(manifest.entries))}"
    machine = facts.machine
    runnable = [target for target in library.targets if machine and target.runs_on(machine)]
    if not runnable:
        runnable = [target for target in library.targets if _has_ptx_for(manifest, target, facts)]
    if not runnable:
        if machine is None:
            return facts.problem.rstrip(".")
        names = ", ".join(target.name for target in library.targets)
        return f"made for {names}, which does not run on {machine.name}"
    if facts.glibc is not None and facts.glibc < parse_version(manifest.glibc):
        here = ".".join(map(str, facts.glibc)) if facts.glibc > (0,) else "none"
        return f"needs glibc {manifest.glibc} or newer, and this system has {here}"
    if not library.path.is_file():
        return f"library file {library.path} is missing"
    target = max(runnable, key=_age)
    key = "llvm" if target.kind == "llvm" else target.arch
    return Choice(library, target, functions[key])


def _has_ptx_for(manifest: Manifest, target: Target, facts: Facts) -> bool:
    """Return whether the library has PTX for `target` that the GPU's driver can compile."""
    if facts.capability is None or manifest.ptx != target.arch:
        return False
    return facts.capability >= target.compute_capability


def _age(target: Target) -> int:
    """Return the position of a target's architecture, from old to new."""
    return ARCHS[target.kind].index(target.arch)


def _generation(choice: Choice) -> int:
    return _age(choice.target)
