"""`natc tune`: search for the fastest schedule of one kernel on one target."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption, RankOption
from natc.cli.verbs.tune_predict import tune_predict
from natc.cli.verbs.tune_set import cluster_measurer, load_compiler, predict_set, tune_set
from natc.cli.views import search
from natc.errors import ArgumentError, NatcError, SpecError, TargetError
from natc.host import detect, gpu
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.targets import Target
from natc.tune import sets
from natc.tune.fleet.cluster import check_address

if TYPE_CHECKING:
    from natc.tune.events import SearchFinished
    from natc.tune.measure.rounds import Imported

# Dtypes of candidates; float64 is for checks, and its speed does not matter.
_DTYPES = ("float32", "float16", "bfloat16")


_MINUTES = 4.0  # of one search
# A set names kernels and operations, so it takes none of these options.
_SET_EXCLUDES = (
    "kernel", "head_dim", "dtype", "rank", "rpb", "operations", "trials", "shape", "export",
    "candidates", "import_", "recheck",
)  # fmt: skip
# A prediction measures nothing.
_PREDICT_EXCLUDES = (
    "minutes", "trials", "export", "import_", "recheck", "named_set", "ray",
)  # fmt: skip
_RECHECKED = {
    "faster": "kept",
    "removed": "removed",
    "shipped": "does not win, but comes with natc and stays",
    "undecided": "kept, undecided",
    "unusable": "not measured",
}


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
        float,
        typer.Option(
            "--minutes",
            min=0.05,
            help="Stop each search after so many minutes.",
        ),
    ] = _MINUTES,
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
        int,
        typer.Option(
            "--candidates", min=2, help="With --export, --predict: how many for each search."
        ),
    ] = 64,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="DIR",
            help="Take in the measurements of such a directory: log and schedules.",
        ),
    ] = None,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck",
            help="Search nothing: compare the saved schedules of this kernel (without --kernel, "
            "of all kernels) with the default, and remove each schedule that is not faster.",
        ),
    ] = False,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Measure nothing: rank candidates for a GPU by predicted times. Needs nvcc, "
            "cuobjdump and no GPU.",
        ),
    ] = False,
    save: Annotated[
        bool,
        typer.Option(
            "--save",
            help="With --predict: write the best as a schedule, unless a measured one takes less "
            "than twice its predicted time.",
        ),
    ] = False,
    named_set: Annotated[
        str | None,
        typer.Option(
            "--set",
            metavar="NAME",
            help=f"Search a set of kernels instead: {' or '.join(sets.NAMES)}.",
            autocompletion=options.complete(lambda: sets.NAMES),
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Build and measure on a Ray cluster: auto, or HOST:PORT of its head.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Search for the fastest way to run a kernel here. Run it again to continue."""
    if named_set is not None:
        _refuse(context, "--set", _SET_EXCLUDES)
    if ray is not None:
        _refuse(context, "--ray", ("export", "import_", "recheck"))
        check_address(ray)
    if predict:
        _refuse(context, "--predict", _PREDICT_EXCLUDES)
    elif save:
        raise ArgumentError(
            "--save goes with --predict; a search saves the schedule that it measured anyway."
        )
    if recheck and (export is not None or import_ is not None):
        raise SpecError("--recheck takes no --export and no --import: it searches nothing.")
    if import_ is not None:
        if kernel is not None or export is not None:
            raise SpecError(
                "--import takes no --kernel and no --export: the directory names the kernels."
            )
        load_compiler()
        _import(import_, json)
        return
    if kernel is None and recheck:
        load_compiler()
        _recheck(_measurable(target, arch, "7"), None, minutes, json, show=not quiet)
        return
    if named_set is not None:
        is_here = ray is None
        if is_here and target.split("-")[0] == "llvm":
            place = detect.parse_target(target, arch)
            if not place.runs_on(detect.detect_host_cpu()):
                predict_set(named_set, sets.searches(named_set, place.kind), place, json=json)
                return
        place = _measurable(target, arch, None) if is_here else detect.parse_target(target, arch)
        searches = sets.searches(named_set, place.kind)
        options.require_compiler("tune")
        _note_gpu(context, place)
        tune_set(named_set, searches, place, minutes, seed, ray, json=json, show=not quiet)
        return
    if kernel is None:
        context.fail("Missing option '--kernel' / '-k'.")
    is_here = export is None and ray is None and not predict
    place = _measurable(target, arch, kernel) if is_here else detect.parse_target(target, arch)
    spec = options.make_spec(
        kernel, kind=place.kind, rank=rank, head_dim=head_dim, dtype=dtype, rpb=rpb
    )
    if spec.dtype not in _DTYPES:
        raise SpecError(
            f"dtype is {spec.dtype}; natc tune measures kernels in {', '.join(_DTYPES)}. "
            "natc build compiles them all."
        )
    wanted = options.parse_tuned(operations, spec, place.kind)
    shapes = [options.parse_input(text, spec) for text in shape] if shape else None
    options.require_compiler("tune")
    if recheck:
        load_compiler()
        kernels = [(spec.name, operation) for operation in wanted]
        _recheck(place, kernels, minutes, json, show=not quiet)
        return
    if predict:
        tune_predict(
            spec, place, wanted, shapes, candidates, seed, save=save, json=json, show=not quiet
        )
        return
    if export is not None:
        load_compiler()
        _export(spec, place, wanted, export, shapes, candidates, seed, json, show=not quiet)
        return

    from natc.cli.views.progress import watch

    _note_gpu(context, place)
    again = shlex.join(["natc", *sys.argv[1:]])
    documents = []
    failed = saved = False
    with contextlib.ExitStack() as stack:
        measurer = stack.enter_context(cluster_measurer(ray, place))
        load_compiler()
        from natc.tune import tune as find_schedule

        for operation in wanted:
            try:
                with watch(show=not quiet) as on_event:
                    finished = find_schedule(
                        spec,
                        place,
                        operation=operation,
                        shapes=shapes,
                        trials=trials,
                        minutes=minutes,
                        seed=seed,
                        on_event=on_event,
                        measurer=measurer,
                    )
            except KeyboardInterrupt:
                text = "stopped. Everything measured is kept; go on with"
                print(f"natc: {text}: {again}", file=sys.stderr)
                raise typer.Exit(search.INTERRUPTED) from None
            if json:
                names = {"spec": spec.name, "target": place.name, "operation": operation}
                documents.append({**names, **asdict(finished)})
            elif finished.outcome not in search.WITHOUT_TIMES:
                search.report(finished, again)
            if finished.outcome in search.WITHOUT_TIMES:
                failed = True
                print(_complaint(spec, operation, finished), file=sys.stderr)
            saved = saved or finished.schedule_path is not None
            if finished.interrupted:
                break
    if json:
        output.print_json(documents[0] if len(wanted) == 1 else {"searches": documents})
    if finished.interrupted:
        raise typer.Exit(search.INTERRUPTED)
    if failed:
        raise typer.Exit(1)
    if saved and not json:
        from natc.runtime.commands import build_command

        output.stdout().print(f"To build it: {build_command(spec, [place])}")


def _refuse(context: typer.Context, option: str, parameters: Sequence[str]) -> None:
    """Raise ArgumentError if the command line sets any of `parameters` besides `option`."""
    named = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in parameters
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name != "DEFAULT"
    ]
    if named:
        raise ArgumentError(f"{option} takes no {' and no '.join(named)}.")


def _note_gpu(context: typer.Context, place: Target) -> None:
    """Print on stderr that the search is for the CPU, if there is a GPU and no --target."""
    source = context.get_parameter_source("target")
    if source is not None and source.name == "DEFAULT" and gpu.driver().gpus:
        name = gpu.driver().gpus[0].name
        text = f"this searches for the CPU, {place.name}; for the GPU ({name}): --target cuda"
        output.stderr().print(f"note: {text}")


def _complaint(spec: KernelSpec, operation: str, finished: SearchFinished) -> str:
    """Return the error message, with advice, for a search that timed no candidate."""
    text = f"{spec.name} {operation}: {finished.message}, so no schedule was written"
    if finished.outcome == "failed":
        return f"natc: error: {text}. {finished.log_path} says why each one failed."
    return f"natc: error: {text}. Run it again with a larger --minutes: it goes on from the log."


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

    documents = []
    for operation in operations:
        with watch(show=show) as on_event:
            exported = export(
                spec,
                target,
                directory,
                operation=operation,
                shapes=shapes,
                candidates=candidates,
                seed=seed,
                on_event=on_event,
            )
        documents.append(
            {
                "spec": spec.name,
                "target": target.name,
                "operation": operation,
                "candidates": len(exported.candidates),
                "dropped": len(exported.dropped),
            }
        )
        if not json:
            count = f"{len(exported.candidates)} candidates, {len(exported.dropped)} dropped"
            output.stdout().print(f"{exported.name}: {count}")
    if json:
        output.print_json({"directory": directory, "searches": documents})
    else:
        output.stdout().print(f"On a machine with that device: natc measure {directory}")


def _recheck(
    target: Target,
    kernels: Sequence[tuple[str, str]] | None,
    minutes: float,
    json: bool,
    *,
    show: bool,
) -> None:
    """Compare saved schedules with the default again; kernels: (spec, operation), None for all."""
    from natc.cli.views.progress import watch
    from natc.tune.search.recheck import recheck, schedules_to_recheck

    outcomes = []
    for item in schedules_to_recheck(kernels, target):
        with watch(show=show) as on_event:
            outcome = recheck(item, minutes, on_event)
        outcomes.append(outcome)
        if not json:
            output.stdout().print(
                f"{outcome.name}: {_RECHECKED[outcome.outcome]}: {outcome.message}\n"
                f"    {outcome.path}"
            )
    if json:
        output.print_json({"target": target.name, "schedules": outcomes})
    elif not outcomes:
        output.stdout().print(f"There is no schedule for {target.name} to compare.")


def _import(directory: Path, json: bool) -> None:
    from natc.tune.measure import rounds

    places = rounds.find(directory)
    # Now, because it loads the compiler, which takes seconds.
    from natc.tune.search.importing import import_round

    imported, problems = [], []
    for place in places:
        try:
            search = import_round(place)
        except NatcError as error:
            if len(places) == 1:
                raise
            problem = str(error)
        else:
            imported.append(search)
            problem = f"{search.name}: {search.problem}" if search.problem else ""
            if not json:
                _show_imported(search)
        if problem:
            problems.append(problem)
            output.stderr().print(f"problem: {problem}")
    if json:
        output.print_json({"searches": imported, "problems": problems})
    if problems:
        raise typer.Exit(1)


def _show_imported(search: Imported) -> None:
    console = output.stdout()
    text = f"{search.name}: {search.trials} new trials in {search.log_path}"
    if search.problem:
        console.print(text)
        return
    written = "" if search.schedule_path else ". No schedule was written."
    console.print(f"{text}; {search.message}{written}")
    if search.schedule_path:
        console.print(f"schedule: {search.schedule_path}")


def _measurable(text: str, arch: str | None, kernel: str | None) -> Target:
    """Return the target; raises TargetError if this machine cannot measure on it.

    kernel: for the advice; None for a set of kernels.
    """
    if text.split("-")[0] == "cuda" and not gpu.driver().gpus:
        # A wrong name raises first; a right one is part of the advice.
        named = detect.parse_target(text, arch or "sm_90" if text == "cuda" else arch)
        problem = (
            "this machine has no NVIDIA GPU (or its driver does not answer), so nothing can be "
            "measured for cuda."
        )
        if kernel is None:
            raise TargetError(f"{problem} Measure on a Ray cluster that has one: --ray ADDRESS.")
        raise TargetError(
            f"{problem} Compile candidates here with --export DIR, measure them on a "
            "machine with a GPU (natc measure DIR) and take them in with --import DIR; or compile "
            "without tuning, which needs no GPU: "
            f"natc build --kernel {shlex.quote(kernel)} --target cuda --arch {named.arch}"
        )
    target = detect.parse_target(text, arch)
    detect.require_runs_here(target, "tune on a machine that it runs on")
    return target
