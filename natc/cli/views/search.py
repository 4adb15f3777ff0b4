"""Runs a search and shows it, for `natc tune` and `natc quickstart`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text
from natc.errors import TuneError
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.targets import Target

if TYPE_CHECKING:
    from natc.tune.events import Event, SearchFinished

# The shell's exit code for a program that Ctrl-C ends.
INTERRUPTED = 130


def run(
    spec: KernelSpec,
    target: Target,
    *,
    operation: str = FORWARD,
    shapes: Sequence[tuple[int, ...]] | None = None,
    trials: int | None = None,
    minutes: float,
    seed: int = 0,
    show: bool = True,
) -> SearchFinished:
    """Search for the fastest schedule, showing progress on stderr; return its last event.

    operation: of `natc.operations`. shapes: inputs `(batch, height, width, heads)`, by default
    NAT's four levels. show: False shows only notes. Raises KeyboardInterrupt if stopped before
    anything was measured.
    """
    from natc.cli.views.progress import watch
    from natc.tune import tune
    from natc.tune.events import SearchFinished

    finished: list[SearchFinished] = []
    with watch(show=show) as on_event:

        def listen(event: Event) -> None:
            if isinstance(event, SearchFinished):
                finished.append(event)
            on_event(event)

        tune(
            spec,
            target,
            operation=operation,
            shapes=shapes,
            trials=trials,
            minutes=minutes,
            seed=seed,
            on_event=listen,
        )
    if not finished:
        raise TuneError(f"the search for {spec.name} ended without a result.")
    return finished[-1]


def summary(finished: SearchFinished) -> str:
    """Return a line on the end of a search that wrote a schedule."""
    state = "stopped" if finished.interrupted else "done"
    faster = f"{speedup(finished):.2f}"
    gain = f"{faster} times faster" if float(faster) > 1 else "no candidate was faster"
    return (
        f"{state}: {finished.trials} candidates in {finished.seconds:.0f} s "
        f"({finished.failures} failed); best {seconds_text(finished.best)}, "
        f"untuned {seconds_text(finished.baseline)}, {gain}"
    )


def speedup(finished: SearchFinished) -> float:
    """Return how many times faster the best kernel is than the untuned one."""
    return finished.baseline / finished.best


def unmeasured(finished: SearchFinished) -> str:
    """Return, as a clause, why a search wrote no schedule."""
    if finished.trials:
        count = finished.trials
        return f"{count} of {count} candidates failed ({finished.log_path} says why)"
    return f"no candidate was measured in {finished.seconds:.0f} s"


def report(finished: SearchFinished, again: str) -> None:
    """Print the end of a search that wrote a schedule, and how to continue if it was stopped."""
    console = output.stdout()
    console.print(summary(finished))
    console.print(f"schedule: {finished.schedule_path}")
    console.print(f"log: {finished.log_path}")
    if finished.interrupted:
        console.print(f"Everything measured is kept; go on with: {again}")
