"""`natc package`: build many kernels and pack them for other machines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import options, output
from natc.cli.options import JsonOption
from natc.cli.views.package_report import progress, show, show_plan
from natc.cli.views.search import INTERRUPTED
from natc.errors import ArgumentError, NatcError, SpecError, TargetError
from natc.host import detect, environment
from natc.operations import FAMILIES
from natc.spec import CUDA_DTYPES, KernelSpec, compiles
from natc.store import files
from natc.targets import ARCHS, Target, parse_archs
from natc.version import __version__

DEFAULT_SET = "nat"

if TYPE_CHECKING:
    from natc.package.jobs import Job
    from natc.package.pieces import Piece


def package(
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel",
            "-k",
            metavar="K,K",
            help="Window sizes: 7, or 3,5,7.",
            autocompletion=options.complete_kernel,
        ),
    ] = None,
    target: options.TargetOption = "llvm",
    arch: options.ArchsOption = None,
    head_dim: Annotated[
        str | None, typer.Option("--head-dim", help="Channels of one head: 32, or 32,64.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Element types: float16, or float16,float32.",
            autocompletion=options.complete_dtype,
        ),
    ] = None,
    rank: options.RankOption = None,
    operations: Annotated[
        str | None,
        typer.Option(
            "--operations",
            help="Operations in each library, separated by commas.",
            autocompletion=options.complete_families,
        ),
    ] = None,
    rpb: options.RpbVariantsOption = None,
    named_set: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="A set of kernels; other options narrow it.",
            show_default="nat, without --kernel",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Pack the libraries of a directory unchanged."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="wheel, archive, zip, hf; one or more.")
    ] = "wheel",
    directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where packages are written.")
    ] = Path("dist"),
    version: Annotated[
        str,
        typer.Option(
            "--package-version", help="Version of the package.", show_default="natc's own"
        ),
    ] = __version__,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY", help="Sign with an ed25519 key (PEM)."),
    ] = None,
    cuda: Annotated[
        str, typer.Option("--cuda", help="CUDA versions that hf variants are named after.")
    ] = "13.0",
    workers: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Kernels built at a time.",
            show_default="the number of CPUs",
        ),
    ] = detect.cores(),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be built and written, and stop.")
    ] = False,
    wait: options.WaitOption = None,
    json: JsonOption = False,
) -> None:
    """Build many kernels and pack them for other machines.

    A package is a wheel, an archive, or in Hugging Face's layout. Without --kernel, it holds all
    kernels of NAT. Run it again after an interruption: it builds only the missing libraries.
    """
    from natc.package import assemble
    from natc.package.plan import parse_list

    files.wait_at_most(wait)
    forms = parse_list(form, "format")
    wrong = [name for name in forms if name not in assemble.FORMATS]
    if wrong:
        raise SpecError(
            f"format is {wrong[0]!r}; it must be {', '.join(assemble.FORMATS)}, or several."
        )
    chosen = (kernel, arch, head_dim, dtype, rank, operations, rpb, named_set)
    if source is not None and any(option is not None for option in chosen):
        raise ArgumentError(
            "--from packs a directory unchanged; it takes no --kernel, --arch, --head-dim, "
            "--dtype, --rank, --operations, --rpb or --set."
        )
    signer = None
    if sign is not None:
        from natc.store.signing import Signer

        signer = Signer(sign)
    when = assemble.epoch()
    if source is not None:
        jobs: list[Job] = []
        tools = ""
    else:
        jobs, tools = _plan(target, *chosen)
    if dry_run:
        show_plan(jobs, tools, source, forms, json=json)
        return
    # Now, not after an hour of building.
    if not files.writable(directory):
        raise NatcError(f"directory {directory} is not writable; name another with --output.")
    reused = 0
    try:
        if source is None:
            reused = _build(jobs, tools, workers)
            pieces = _built_pieces(jobs, tools, when)
        else:
            from natc.package.pieces import read_pieces

            pieces = read_pieces(source, when)
        names = assemble.names_of(pieces, version)
        written = assemble.write(
            forms, pieces, names, directory, when=when, signer=signer,
            cuda=parse_list(cuda, "cuda"),
        )  # fmt: skip
    except KeyboardInterrupt:
        again = shlex.join(["natc", *sys.argv[1:]])
        print(f"natc: stopped. Everything built is kept; go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    show(written, pieces, names, built=len(jobs) - reused, reused=reused, json=json)


def _plan(
    target: str,
    kernel: str | None,
    arch: str | None,
    head_dim: str | None,
    dtype: str | None,
    rank: int | None,
    operations: str | None,
    rpb: bool | None,
    named_set: str | None,
) -> tuple[list[Job], str]:
    """Return the libraries that the options name, and the tools that build them."""
    from natc.package import plan
    from natc.package.jobs import jobs, tool_versions

    if named_set is not None and named_set not in plan.SETS:
        raise SpecError(f"set is {named_set!r}; it must be {', '.join(plan.SETS)}.")
    if named_set is None and kernel is None:
        named_set = DEFAULT_SET
    kind, archs = _archs(target, arch)
    base = plan.SETS[named_set] if named_set is not None else plan.KernelSet(
        (), (options.DEFAULT_HEAD_DIM,), (options.DEFAULT_DTYPE[kind],), FAMILIES
    )  # fmt: skip
    dtypes = plan.parse_dtypes(dtype) if dtype is not None else base.dtypes
    unfit = [name for name in dtypes if not compiles(name, kind)]
    if unfit:
        raise SpecError(f"dtype is {unfit[0]}; kernels for cuda are {', '.join(CUDA_DTYPES)}.")
    specs: list[KernelSpec] = plan.specs(
        plan.parse_list(kernel, "kernel") if kernel is not None else base.kernels,
        plan.parse_head_dims(head_dim) if head_dim is not None else base.head_dims,
        dtypes,
        (True, False) if rpb is None else (rpb,),
        rank=rank,
    )
    families = options.parse_operations(operations) if operations is not None else base.families
    return jobs(specs, kind, archs, families), tool_versions(kind)


def _archs(target: str, arch: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the kind of target and its architectures."""
    if arch is not None and target in ARCHS:
        if target == "cuda":
            return target, parse_archs(arch)
        from natc.package.plan import parse_list

        named = parse_list(arch, "arch")
        archs = tuple(Target("llvm", name).arch for name in named)
        if "aarch64" in archs and len(archs) > 1:
            raise TargetError(
                f"arch is {arch}; a package is for x86-64 or for aarch64: make one for each."
            )
        return target, tuple(name for name in ARCHS["llvm"] if name in archs)
    single = detect.parse_target(target, arch)
    return single.kind, (single.arch,)


def _build(jobs: Sequence[Job], tools: str, workers: int) -> int:
    """Build the missing libraries; return how many were there already."""
    from natc.package.jobs import build_all, built, linker_note

    todo = [job for job in jobs if built(job, tools) is None]
    console = output.stderr()
    if todo:
        options.require_compiler("build")
        note = linker_note()
        if note:
            console.print(f"note: {note}")
    with progress(len(todo), len(jobs) - len(todo)) as report:
        for job, _ in build_all(todo, tools, workers):
            report(job)
    return len(jobs) - len(todo)


def _built_pieces(jobs: Sequence[Job], tools: str, when: int) -> list[Piece]:
    import msgspec

    from natc.package.jobs import built
    from natc.package.pieces import piece

    git = environment.git_state()
    provenance = msgspec.to_builtins(git) if git is not None else {}
    pieces = []
    for job in jobs:
        library = built(job, tools)
        if library is None:
            raise NatcError(f"{job} has no library, though it was built just now.")
        part = piece(library, when)
        # The same code at an earlier commit builds the same library: name this commit.
        manifest = replace(part.manifest, provenance=provenance)
        pieces.append(replace(part, manifest=manifest))
    return sorted(pieces, key=lambda piece: piece.manifest.name)
