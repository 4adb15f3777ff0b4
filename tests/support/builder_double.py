"""A double of the builder, for tests of commands and calls that build libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget
from natc.targets import Target
from support.library_files import add_code


class Builder:
    """Stands for the compiler: writes a library that is no code, with a true manifest."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], Path]] = []
        self.families: list[tuple[str, ...]] = []
        self.untuned: list[bool] = []
        self.untuned_code = b"no code"

    def __call__(
        self,
        spec: KernelSpec,
        target: Target | list[Target],
        output_dir: Path,
        *,
        families: tuple[str, ...],
        on_note: Callable[[str], None] | None = None,
        untuned: bool = False,
    ) -> Path:
        self.families.append(families)
        self.untuned.append(untuned)
        targets = [target] if isinstance(target, Target) else list(target)
        self.asked.append((spec.name, [each.name for each in targets], output_dir))
        if on_note:
            on_note(f"{spec.name} was never tuned: built untuned")
        target_of_all = LibraryTarget(targets[0].kind, tuple(each.arch for each in targets))
        code = self.untuned_code if untuned else b"no code"
        return add_code(output_dir, code, spec, target_of_all, operations_of(spec, families))
