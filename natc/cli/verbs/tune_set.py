"""`natc tune --set`: searches for many kernels in one command, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from natc.cli import options, output
from natc.cli.views import search
from natc.errors import ArgumentError, NatcError, TuneError
from natc.targets import Target
from natc.tune.sets import Tuned

if TYPE_CHECKING:
    from natc.tune.measure.measurer import MakeMeasurer
    from natc.tune.search.set_plan import SetPlan, SetRow

# A search of fewer seconds measures nothing: the default alone takes as long.
_LEAST_SECONDS = 10.0


@contextlib.contextmanager
def cluster_measurer(address: str | None, target: Target) -> Iterator[MakeMeasurer | None]:
    """Yield what makes the measurers of searches on a Ray cluster; None without an address.

    Raises NatcError if the cluster cannot be reached or has no node with the target.
    """
    if address is None:
        yield None
        return
    from natc.tune.fleet.cluster import connected
    from natc.tune.fleet.remote import FleetMeasurer

    with connected(address) as cluster:
        cluster.require(target)
        yield functools.partial(FleetMeasurer, cluster)


def load_compiler() -> None:
    """Load TVM, without torch: kernels run in other processes. Raise NatcError without TVM."""
    options.require_compiler("tune")
    from natc.compiler.import_tvm import import_tvm_alone
    from natc.tune.search.interrupts import deferred

    # Ctrl-C can be lost while the compiler loads.
    with deferred():
        import_tvm_alone()


def tune_set(
    name: str,
    searches: Sequence[Tuned],
    target: Target,
    minutes: float,
    seed: int,
    address: str | None,
    *,
    json: bool,
    show: bool,
) -> None:
    """Run the searches of a set that have not ended; print a table of their gains.

    minutes: for each of them. address: of a Ray cluster, or None for this machine. Exits with 1 if
    a search failed, and with 130 if Ctrl-C stopped it.
    """
    least = _LEAST_SECONDS / 60
    if minutes < least:
        raise ArgumentError(
            f"minutes is {minutes:g}, for each search of set {name}; "
            f"it must be at least {least:.2g}."
        )
    problem: NatcError | None = None
    interrupted = False
    with cluster_measurer(address, target) as measurer:
        load_compiler()
        from natc.tune.search.set_plan import SetPlan, machine_of

        plan = SetPlan(searches, target, minutes, machine_of(searches[0], target, measurer, seed))
        try:
            interrupted = _run(plan, target, seed, measurer, show=show)
        except KeyboardInterrupt:
            interrupted = True
        except NatcError as error:
            problem = error
    rows = plan.rows()
    if json:
        output.print_json({"set": name, "target": target.name, "searches": rows})
    else:
        _print_table(f"{name}, {target.name}", rows)
    if problem is not None:
        raise problem
    again = shlex.join(["natc", *sys.argv[1:]])
    if interrupted:
        text = "stopped. Everything measured is kept; go on with"
        print(f"natc: {text}: {again}", file=sys.stderr)
        raise typer.Exit(search.INTERRUPTED)
    without_times = sum(row.outcome in search.WITHOUT_TIMES for row in rows)
    if without_times:
        text = f"no candidate has a time in {without_times} of {len(rows)} searches"
        print(f"natc: error: {text}; run it again with a larger --minutes.", file=sys.stderr)
    if without_times or any(row.problem for row in rows):
        raise typer.Exit(1)


def predict_set(name: str, searches: Sequence[Tuned], target: Target, *, json: bool) -> None:
    """Write the schedules that a model expects to be fast on a CPU that this machine is not."""
    load_compiler()
    from natc.host import environment
    from natc.tune.search.predicted import predict_schedule
    from natc.tune.search.set_plan import SetPlan

    for spec, operation in searches:
        predict_schedule(spec, target, operation)
    rows = SetPlan(searches, target, 1.0, environment.collect()).rows()
    if json:
        output.print_json({"set": name, "target": target.name, "searches": rows})
        return
    text = f"this machine does not run code for {target.name}: nothing was timed, only predicted"
    output.stderr().print(f"note: {text}")
    _print_table(f"{name}, {target.name}", rows)


def _run(
    plan: SetPlan, target: Target, seed: int, measurer: MakeMeasurer | None, *, show: bool
) -> bool:
    """Run the unfinished searches of a set; return whether Ctrl-C stopped one."""
    from natc.cli.views.progress import watch
    from natc.tune import tune

    while unfinished := plan.unfinished():
        spec, operation = unfinished[0]
        minutes = plan.minutes_for_next()
        if show:
            text = f"{spec.name} {operation}, at most {minutes:.1f} minutes"
            text += f"; {len(unfinished)} searches to go"
            output.stderr().print(text)
        problem = ""
        try:
            with watch(show=show) as on_event:
                finished = tune(
                    spec,
                    target,
                    operation=operation,
                    minutes=minutes,
                    gives_up=True,
                    seed=seed,
                    on_event=on_event,
                    measurer=measurer,
                )
        except TuneError as error:
            problem = str(error)
            output.stderr().print(f"problem: {problem}")
        else:
            if finished.interrupted:
                plan.ended(unfinished[0])
                return True
        plan.ended(unfinished[0], problem)
    return False


def _print_table(title: str, rows: Sequence[SetRow]) -> None:
    table = output.table(title, "kernel", "operation", "candidates", "gain", "file")
    for row in rows:
        path = "-" if row.path is None else str(row.path)
        table.add_row(row.spec, row.operation, str(row.candidates), _gain(row), path)
    output.print_table(table)


def _gain(row: SetRow) -> str:
    """Return the gain over the default and its interval, or why there is no gain."""
    if row.problem:
        return "failed"
    if row.gain is not None:
        return f"{row.gain.speedup:.2f} ({row.gain.low:.2f} to {row.gain.high:.2f})"
    if row.speedup is not None:
        return f"{row.speedup:.2f} ({'predicted' if row.predicted else 'unproven'})"
    if row.outcome in ("", "interrupted"):
        return "not searched yet" if not row.outcome else "stopped"
    return "default" if row.outcome == "not faster" else f"default ({row.outcome})"
