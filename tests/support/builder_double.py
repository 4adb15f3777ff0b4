"""A double of what builds libraries, for tests of what asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.store import manifest as manifests
from natc.targets import Target


class Builder:
    """Stands for the compiler: writes a library that is no code, with a true manifest."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], Path]] = []
        self.families: list[tuple[str, ...]] = []

    def __call__(
        self,
        spec: KernelSpec,
        target: Target | list[Target],
        output_dir: Path,
        *,
        families: tuple[str, ...],
        on_note: Callable[[str], None] | None = None,
    ) -> Path:
        self.families.append(families)
        targets = [target] if isinstance(target, Target) else list(target)
        self.asked.append((spec.name, [each.name for each in targets], output_dir))
        if on_note:
            on_note(f"{spec.name} was never tuned: built untuned")
        kind = targets[0].kind
        place = manifests.LibraryTarget(kind, tuple(each.arch for each in targets))
        keys = ["llvm"] if kind == "llvm" else [each.arch for each in targets]
        stem = f"{spec.name}.{place.name}"
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / f"{stem}.so").write_bytes(b"no code")
        path = output_dir / f"{stem}.json"
        found = manifests.Manifest(
            spec=spec.name,
            target=place,
            library=f"{stem}.so",
            sha256=hashlib.sha256(b"no code").hexdigest(),
            entries={
                name: {key: f"{name}_{key}" for key in keys}
                for name in operations_of(spec, families)
            },
        )
        path.write_text(manifests.dump(found))
        return path
