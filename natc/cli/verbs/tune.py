"""`natc tune`: search for the fastest schedule of one kernel on one target."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption, RankOption
from natc.cli.output import seconds_text
from natc.cli.views import search
from natc.errors import NatcError, SpecError, TargetError
from natc.host import detect, gpu
from natc.host.detect import detect_gpu, detect_host_cpu
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.targets import Target

if TYPE_CHECKING:
    from natc.tune.events import SearchFinished
    from natc.tune.measure.rounds import Imported

# What candidates are checked and timed in; float64 is for checks, where speed does not matter.
_DTYPES = ("float32", "float16", "bfloat16")


def tune(
    context: typer.Context,
    kernel: options.OptionalKernelOption = None,
    target: options.TargetOption = "llvm",
    arch: options.ArchOption = None,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rank: RankOption = None,
    rpb: options.RpbOption = True,
    operations: Annotated[
        str,
        typer.Option(
            "--operations",
            help="What to tune, separated by commas: forward, backward, unfused, or single "
            "operations such as d_query.",
            autocompletion=options.complete_families,
        ),
    ] = FORWARD,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.05, help="Stop each search after so many minutes.")
    ] = 4.0,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Stop after this many candidates.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")] = 0,
    shape: options.ShapeOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="DIR",
            help="Measure nothing: compile candidates into a directory, for natc measure.",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option("--candidates", min=2, help="With --export: how many for each search.")
    ] = 64,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="DIR",
            help="Take in what natc measure found in such a directory: log and schedules.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Search for the fastest schedules; the same command again goes on from there."""
    if import_ is not None:
        if kernel is not None or export is not None:
            raise SpecError("--import takes no --kernel and no --export: the directory says it.")
        options.require_compiler("tune")
        _import(import_, json)
        return
    if kernel is None:
        raise SpecError("--kernel is missing: the window to tune, such as --kernel 7.")
    place = (
        _measurable(target, arch, kernel) if export is None else detect.parse_target(target, arch)
    )
    spec = options.make_spec(
        kernel, kind=place.kind, rank=rank, head_dim=head_dim, dtype=dtype, rpb=rpb
    )
    if spec.dtype not in _DTYPES:
        raise SpecError(
            f"dtype is {spec.dtype}; natc tune measures kernels in {', '.join(_DTYPES)}. "
            "natc build compiles them all."
        )
    wanted = options.parse_tuned(operations, spec)
    shapes = [options.parse_input(text, spec) for text in shape] if shape else None
    options.require_compiler("tune")
    if export is not None:
        _export(spec, place, wanted, export, shapes, candidates, seed, json, show=not quiet)
        return

    _note_gpu(context, place)
    again = shlex.join(["natc", *sys.argv[1:]])
    documents = []
    failed = False
    for operation in wanted:
        try:
            finished = search.run(
                spec,
                place,
                operation=operation,
                shapes=shapes,
                trials=trials,
                minutes=minutes,
                seed=seed,
                show=not quiet,
            )
        except KeyboardInterrupt:
            said = "stopped. Everything measured is kept; go on with"
            print(f"natc: {said}: {again}", file=sys.stderr)
            raise typer.Exit(search.INTERRUPTED) from None
        if json:
            names = {"spec": spec.name, "target": place.name, "operation": operation}
            documents.append({**names, **asdict(finished), "speedup": search.speedup(finished)})
        elif finished.schedule_path is not None:
            search.report(finished, again)
        if finished.schedule_path is None:
            failed = True
            print(_complaint(spec, operation, finished, again), file=sys.stderr)
        if finished.interrupted:
            break
    if json:
        output.print_json(documents[0] if len(wanted) == 1 else {"searches": documents})
    if finished.interrupted:
        raise typer.Exit(search.INTERRUPTED)
    if failed:
        raise typer.Exit(1)
    if not json:
        from natc.runtime.commands import build_command

        output.stdout().print(f"To build it: {build_command(spec, [place])}")


def _note_gpu(context: typer.Context, place: Target) -> None:
    """Say on stderr that the CPU is searched for, where there is a GPU and nobody said which."""
    source = context.get_parameter_source("target")
    if source is not None and source.name == "DEFAULT" and gpu.driver().gpus:
        name = gpu.driver().gpus[0].name
        said = f"this searches for the CPU, {place.name}; for the GPU ({name}): --target cuda"
        output.stderr().print(f"note: {said}")


def _complaint(spec: KernelSpec, operation: str, finished: SearchFinished, again: str) -> str:
    """Return a sentence on a search that wrote no schedule, and what to do."""
    text = f"{spec.name} {operation}: {search.unmeasured(finished)}, so no schedule was written"
    if finished.interrupted:
        return f"natc: stopped: {text}; go on with: {again}"
    limits = "--minutes or --trials" if finished.trials else "--minutes"
    return f"natc: error: {text}. Run it again with a larger {limits}: it goes on from the log."


def _export(
    spec: KernelSpec,
    target: Target,
    operations: Sequence[str],
    directory: Path,
    shapes: Sequence[tuple[int, ...]] | None,
    candidates: int,
    seed: int,
    json: bool,
    *,
    show: bool,
) -> None:
    from natc.cli.views.progress import watch
    from natc.tune.search.export import export

    made = []
    for operation in operations:
        with watch(show=show) as on_event:
            found = export(
                spec,
                target,
                directory,
                operation=operation,
                shapes=shapes,
                candidates=candidates,
                seed=seed,
                on_event=on_event,
            )
        made.append(
            {
                "spec": spec.name,
                "target": target.name,
                "operation": operation,
                "candidates": len(found.candidates),
                "dropped": len(found.dropped),
            }
        )
        if not json:
            text = (
                f"{found.name}: {len(found.candidates)} candidates, {len(found.dropped)} dropped"
            )
            output.stdout().print(text)
    if json:
        output.print_json({"directory": directory, "searches": made})
    else:
        output.stdout().print(f"Measure it on a machine of that kind: natc measure {directory}")


def _import(directory: Path, json: bool) -> None:
    from natc.tune.measure import rounds
    from natc.tune.search.importing import import_round

    places = rounds.find(directory)
    found, problems = [], []
    for place in places:
        try:
            one = import_round(place)
        except NatcError as error:
            if len(places) == 1:
                raise
            problem = str(error)
        else:
            found.append(one)
            problem = f"{one.name}: {one.problem}" if one.problem else ""
            if not json:
                _show_imported(one)
        if problem:
            problems.append(problem)
            output.stderr().print(f"problem: {problem}")
    if json:
        output.print_json({"searches": found, "problems": problems})
    if problems:
        raise typer.Exit(1)


def _show_imported(one: Imported) -> None:
    console = output.stdout()
    times = f"best {seconds_text(one.best)}, untuned {seconds_text(one.untuned)}"
    console.print(f"{one.name}: {times}; {one.trials} new trials in {one.log_path}")
    if one.problem:
        return
    console.print(f"schedule: {one.schedule_path}" + (f" ({one.kept})" if one.kept else ""))
    if not one.complete:
        console.print("Measuring was cut short, so that the winner is a guess: natc measure")


def _measurable(text: str, arch: str | None, kernel: str) -> Target:
    """Return the target, or raise TargetError where this machine cannot measure on it."""
    if text.split("-")[0] == "cuda" and not gpu.driver().gpus:
        # A wrong name is the first thing to say, and a right one belongs into the advice.
        named = detect.parse_target(text, arch or "sm_90" if text == "cuda" else arch)
        raise TargetError(
            "this machine has no NVIDIA GPU (or its driver does not answer), so nothing can be "
            "measured for cuda. Compile candidates here with --export DIR, measure them on a "
            "machine with one (natc measure DIR) and take them in with --import DIR; or compile "
            "without tuning, which needs no GPU: "
            f"natc build --kernel {shlex.quote(kernel)} --target cuda --arch {named.arch}"
        )
    target = detect.parse_target(text, arch)
    machine = detect_gpu() if target.kind == "cuda" else detect_host_cpu()
    if not target.runs_on(machine):
        raise TargetError(
            f"code for {target.name} does not run on this machine, which is {machine.name}; "
            "tune on a machine that it runs on."
        )
    return target
