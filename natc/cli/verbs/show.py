"""`natc show`: which library serves a kernel's calls, and why; or the contents of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption
from natc.errors import ArgumentError, SpecError, TargetError
from natc.host import detect
from natc.operations import FORWARD, OPERATIONS, operations_of
from natc.spec import KernelSpec, compiles
from natc.targets import ARCHS

if TYPE_CHECKING:
    from natc.runtime import Facts


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|NAME",
            help="A library (.so), its manifest or a schedule (.json); or a kernel's name, as "
            "natc list prints it, instead of --kernel.",
            show_default=False,
        ),
    ] = None,
    kernel: options.OptionalKernelOption = None,
    target: options.TargetOption = "llvm",
    arch: options.ArchOption = None,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rank: options.RankOption = None,
    value_dim: options.ValueDimOption = None,
    rpb: options.RpbOption = True,
    operation: Annotated[
        str,
        typer.Option(
            "--operation",
            help="The operation to explain, such as forward or d_query.",
            autocompletion=options.complete(lambda: tuple(OPERATIONS)),
        ),
    ] = FORWARD,
    json: JsonOption = False,
) -> None:
    """Show what serves a kernel's calls here, and why.

    Candidates come in the order in which natc looks. Exits with 1 if a call would run on the
    reference or raise. With a FILE, shows the contents of a library or a schedule.
    """
    # Imported here, so that natc --help does not load it.
    from natc import runtime
    from natc.cli.views import show_file, show_schedule, why

    if what is not None and show_file.is_file(what):
        document = show_file.document(what)
        if json:
            output.print_json(document)
        else:
            show_file.show(document)
        if document.get("problem"):
            raise typer.Exit(1)
        return
    if what is not None and kernel is not None:
        raise ArgumentError("NAME and --kernel are both there; natc show takes only one.")
    facts = _facts(target, arch)
    if what is not None:
        spec = _spec_of_name(what)
    elif kernel is not None:
        kind = target.split("-")[0]
        spec = options.make_spec(
            kernel,
            # A question about float64 on a GPU is allowed: the reference serves it.
            kind="llvm" if dtype and not compiles(dtype, kind) else kind,
            rank=rank,
            head_dim=head_dim,
            dtype=dtype,
            rpb=rpb,
            value_dim=value_dim,
        )
    else:
        raise ArgumentError(
            "--kernel is missing: the window to explain, such as --kernel 7; or a NAME or FILE."
        )
    operations = operations_of(spec, kind=facts.machine.kind if facts.machine else None)
    if operation not in operations:
        raise SpecError(f"operation is {operation!r}; {spec.name} has {', '.join(operations)}.")
    explanation = runtime.explain(spec, facts, operation=operation)
    account, choice = why.account(explanation), explanation.choice
    if choice is not None:
        account["holds"] = show_file.held(choice.library)
        account["schedule"] = show_schedule.of_library(choice.library, choice.target, operation)
    elif facts.machine is not None:
        account["schedule"] = show_schedule.on_file(spec, facts.machine, operation)
    if json:
        output.print_json(account)
    else:
        _print(account)
    if account["served_by"] in (why.REFERENCE, why.REFUSED):
        raise typer.Exit(1)


def _spec_of_name(name: str) -> KernelSpec:
    # A schedule's name may end with an operation.
    try:
        return KernelSpec.parse(name.split(".")[0])
    except SpecError as error:
        raise ArgumentError(
            f"{name!r} is neither a file nor the name of a kernel; names look like "
            "na2d_k7_d32_float32_rpb."
        ) from error


def _facts(target: str, arch: str | None) -> Facts:
    from natc import runtime

    if target not in ARCHS or arch is not None:
        return runtime.facts_of(detect.parse_target(target, arch))
    facts = runtime.this_machine()[target]
    if facts.machine is None and facts.capability is None:
        raise TargetError(
            f"{facts.problem.rstrip('.')}; to ask about another machine, name its architecture "
            f"with --arch: {', '.join(ARCHS[target])}."
        )
    return facts


def _print(account: dict[str, Any]) -> None:
    from natc.cli.views import show_file, show_schedule, why

    console = output.stdout()
    machine = f" ({account['machine']})" if account["machine"] else ""
    console.print(
        f"{account['spec']}, {account['operation']}, on {account['device']}{machine}", style="bold"
    )
    good = account["served_by"] in (why.LIBRARY, why.BUILD)
    console.print(f"served by: {_server(account)}", style="green" if good else "yellow")
    console.print(f"because: {account['why']}")
    if account["command"] and account["library"] is None:
        console.print(f"build it: {account['command']}")
    console.print("where natc looks, in order", style="bold")
    for line in why.place_lines(account["places"]):
        console.print(line)
    builds = "yes" if account["not_built"] is None else f"no: {account['not_built']}"
    if account["library"] is not None:
        builds = "not needed"
    console.print(f"  build by the first call: {builds}")
    console.print("  reference: plain PyTorch, if no library serves the call")
    console.print("operations", style="bold")
    servers: dict[str, list[str]] = {}
    for row in account["operations"]:
        servers.setdefault(_server(row), []).append(row["operation"])
    for server, names in servers.items():
        console.print(f"  {server}: {', '.join(names)}")
    if account.get("holds"):
        show_file.show_held(account["holds"])
    if account.get("schedule"):
        show_schedule.show(account["schedule"])


def _server(row: dict[str, Any]) -> str:
    from natc.cli.views import why

    words = {
        why.BUILD: "a build by the first call",
        why.REFERENCE: "the reference",
        why.REFUSED: "nothing: the call raises",
    }
    return words.get(row["served_by"]) or str(row["library"])
