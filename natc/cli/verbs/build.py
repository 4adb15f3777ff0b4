"""`natc build`: compile a kernel into a library directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption, KernelOption, RankOption
from natc.errors import NatcError, SpecError
from natc.host import detect
from natc.operations import FAMILIES, contents, operations_of
from natc.store import files, workspace
from natc.targets import Target, parse_archs


def build(
    kernel: KernelOption,
    target: options.TargetOption = "llvm",
    arch: options.ArchsOption = None,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rank: RankOption = None,
    value_dim: options.ValueDimOption = None,
    terms: options.TermsOption = "",
    operations: Annotated[
        str,
        typer.Option(
            "--operations",
            help="Operations in the library, separated by commas.",
            autocompletion=options.complete_families,
        ),
    ] = ",".join(FAMILIES),
    rpb: options.RpbVariantsOption = None,
    directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Library directory.", show_default="natc's own"),
    ] = None,
    wait: options.WaitOption = None,
    json: JsonOption = False,
) -> None:
    """Compile a kernel into a library. It serves any map size.

    The kernel's schedule says how to compile it; without one it is untuned.
    """
    targets = _targets(target, arch)
    families = options.parse_operations(operations)
    variants = (True, False) if rpb is None else (rpb,)
    specs = [
        options.make_spec(
            kernel,
            kind=targets[0].kind,
            rank=rank,
            head_dim=head_dim,
            dtype=dtype,
            rpb=variant,
            value_dim=value_dim,
            terms=terms,
        )
        for variant in variants
    ]
    if not operations_of(specs[0], families):
        if specs[0].terms:
            raise SpecError(
                f"terms is {terms}; the operations unfused have no kernels with terms."
            )
        raise SpecError(
            f"value_dim is {specs[0].value_dim} and head_dim {specs[0].head_dim}; the operations "
            f"{', '.join(families)} have kernels only if they are equal."
        )
    options.require_compiler("build")
    files.wait_at_most(wait)
    where = directory or workspace.library_dir()
    if not files.writable(where):
        raise NatcError(
            f"directory {where} is not writable; name another with --output, or with "
            "NATC_CACHE_DIR for everything that natc keeps."
        )

    from natc.compiler.import_tvm import import_tvm_alone
    from natc.tune.search.interrupts import deferred

    # Ctrl-C can be lost while the compiler loads.
    with deferred():
        import_tvm_alone(targets[0].kind)
        from natc.compiler.build import build_library
    from natc.store.manifest import load_manifest

    progress = output.stderr()
    built = []
    for spec in specs:
        notes: list[str] = []

        def on_note(message: str, notes: list[str] = notes) -> None:
            notes.append(message)
            progress.print(f"note: {message}")

        path = build_library(
            spec,
            targets if targets[0].kind == "cuda" else targets[0],
            where,
            families=families,
            on_note=on_note,
        )
        manifest = load_manifest(path)
        library = path.with_name(manifest.library)
        held = contents(spec, manifest.entries)
        built.append(
            {"library": library, "manifest_path": path, "manifest": manifest, "notes": notes}
        )
        if not json:
            archs = ", ".join(manifest.target.archs)
            output.stdout().print(
                f"built {library} ({', '.join(held)}; {archs}; {library.stat().st_size} bytes)"
            )
    if json:
        output.print_json({"directory": where, "built": built})
    elif directory is not None:
        path_text = shlex.quote(str(directory.absolute()))
        output.stdout().print(f"To use it: export NATC_LIB_PATH={path_text}")


def _targets(text: str, arch: str | None) -> list[Target]:
    """Return the targets of one library: one for llvm, one or more for cuda."""
    if text == "cuda" and arch is not None:
        return [Target("cuda", name) for name in parse_archs(arch)]
    return [detect.parse_target(text, arch)]
