"""`natc doctor`: versions, hardware and paths of this machine, and every problem."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from natc import env
from natc.cli import output
from natc.cli.options import JsonOption
from natc.cli.verbs import list_
from natc.errors import ArgumentError, LibraryError
from natc.host import environment, gpu
from natc.operations import contents
from natc.store import files, workspace

_COMMANDS = ("cc", "gcc", "clang", "nvcc", "cuobjdump")


def doctor(
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Show for each feature whether it is supported, and installed here, instead.",
        ),
    ] = False,
    why: Annotated[
        bool,
        typer.Option(
            "--why", help="Show for each library whether calls here use it, and why not, instead."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show versions, hardware, paths and every problem.

    Exits with 1 if there is a problem.
    """
    if coverage and why:
        raise ArgumentError(
            "--coverage and --why show different things; natc doctor takes only one."
        )
    if coverage:
        from natc.cli.views.coverage import show

        show(json=json)
        return
    if why:
        from natc.cli.views.why_libraries import show_libraries

        show_libraries(json=json)
        return
    problems: list[str] = []
    document = {
        "versions": _versions(problems),
        "machine": _machine(problems),
        "compilers": _compilers(problems),
        "environment": {var.name: var.get() for var in env.ALL},
        "paths": _paths(problems),
        "libraries": _libraries(problems),
        "problems": problems,
    }
    for row in (*list_.schedule_rows(), *list_.log_rows()):
        problems += row["problems"]
    if json:
        output.print_json(document)
    else:
        _print(document)
    if problems:
        raise typer.Exit(1)


def _versions(problems: list[str]) -> dict[str, str | None]:
    versions = environment.versions()
    versions["ziglang"] = environment.version_of("ziglang")
    conflict = environment.compiler_problem()
    if conflict:
        problems.append(conflict)
    return versions


def _machine(problems: list[str]) -> dict[str, Any]:
    facts = environment.collect()
    gpus = []
    for device in gpu.driver().gpus:
        facts_of_gpu = environment.gpu_facts(device)
        gpus.append(f"{facts_of_gpu.name}, compute capability {facts_of_gpu.capability}")
    if gpus:
        # Only then: importing torch takes longer than everything else.
        import torch

        if not torch.cuda.is_available():
            problems.append(
                f"torch {torch.__version__} does not see this machine's GPU ({gpus[0]}). Install "
                f"a build for a CUDA version that the driver runs, {facts.driver or 'unknown'} or "
                "older: https://pytorch.org/get-started/locally."
            )
    if facts.target is None:
        problems.append(f"natc compiles no code for this CPU ({facts.cpu}); the reference runs.")
    return {
        "os": facts.os,
        "cpu": facts.cpu,
        "cores": facts.cores,
        "target": facts.target,
        "cuda_driver": facts.driver,
        "gpus": gpus,
    }


def _compilers(problems: list[str]) -> dict[str, str | None]:
    commands = {name: shutil.which(name) for name in _COMMANDS}
    named = env.NATC_CC.get()
    commands[env.NATC_CC.name] = shutil.which(named.split()[0]) if named else None
    commands["ziglang"] = "python -m ziglang cc" if find_spec("ziglang") else None
    if named and commands[env.NATC_CC.name] is None:
        problems.append(f"NATC_CC is {named!r}, which is not a command on this machine.")
    usable = [commands[name] for name in ("cc", "gcc", "clang", "ziglang", env.NATC_CC.name)]
    if find_spec("tvm") and not any(usable):
        problems.append(
            "there is no C compiler, so natc build cannot link: pip install ziglang, or install "
            "gcc or clang, or set NATC_CC."
        )
    return commands


def _paths(problems: list[str]) -> dict[str, dict[str, Any]]:
    places = {"workspace": workspace.workspace(), "cache": workspace.cache_dir()}
    sources = {}
    for number, place in enumerate(workspace.library_places(), 1):
        places[f"libraries {number}"] = place.path
        sources[f"libraries {number}"] = place.source
    for name, variable in (("workspace", env.NATC_WORKSPACE), ("cache", env.NATC_CACHE_DIR)):
        if not files.writable(places[name]):
            problems.append(
                f"the {name} directory {places[name]} is not writable; name another with "
                f"{variable.name}."
            )
    return {
        name: {
            "path": path,
            "from": sources.get(name),
            "exists": path.is_dir(),
            "writable": files.writable(path),
        }
        for name, path in places.items()
    }


def _libraries(problems: list[str]) -> list[dict[str, Any]]:
    from natc import runtime

    rows = []
    sources = workspace.library_sources()
    for library in runtime.kernels():
        problem = None
        try:
            runtime.verify(library)
        except LibraryError as error:
            problem = str(error)
            problems.append(problem)
        rows.append(
            {
                "path": library.path,
                "from": sources.get(library.path.parent),
                "spec": library.manifest.spec,
                "operations": contents(library.spec, library.manifest.entries),
                "ok": problem is None,
            }
        )
    problems.extend(f"{item.path}: {item.reason}." for item in runtime.problems())
    return rows


def _print(document: dict[str, Any]) -> None:
    console = output.stdout()
    for section in ("versions", "machine", "compilers", "environment", "paths"):
        console.print(section, style="bold")
        width = max(18, *map(len, document[section]))
        for name, value in document[section].items():
            console.print(f"  {name:<{width}} {_text(value)}")
    console.print("libraries", style="bold")
    for row in document["libraries"]:
        state = "intact" if row["ok"] else "DAMAGED"
        console.print(
            f"  {row['path']}: {state}; {', '.join(row['operations'])}; from {row['from']}"
        )
    if not document["libraries"]:
        console.print("  none; build a library: natc build --kernel 7 --target llvm")
    for problem in document["problems"]:
        console.print(f"problem: {problem}", style="red")
    if document["problems"]:
        list_.note_leftovers()
    else:
        console.print("no problems found", style="green")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        notes = [value["from"]] if value["from"] else []
        notes += [word for word, on in (("missing", not value["exists"]),
                                       ("not writable", not value["writable"])) if on]  # fmt: skip
        return f"{value['path']}" + (f" ({', '.join(notes)})" if notes else "")
    if isinstance(value, list):
        return "; ".join(value) or "none"
    return "-" if value is None else str(value)
