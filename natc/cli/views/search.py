"""What `natc tune` and `natc quickstart` say about the end of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text

if TYPE_CHECKING:
    from natc.tune.events import SearchFinished

# The shell's exit code for a program that Ctrl-C ends.
INTERRUPTED = 130


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
