"""What `natc tune` and `natc quickstart` say about the end of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natc.cli import output

if TYPE_CHECKING:
    from natc.tune.events import SearchFinished

# The shell's exit code for a program that Ctrl-C ends.
INTERRUPTED = 130
# Outcomes of searches that timed no candidate.
WITHOUT_TIMES = ("unmeasured", "failed")


def summary(finished: SearchFinished) -> str:
    """Return a line on the end of a search: its candidates, and the outcome in words."""
    state = "stopped" if finished.interrupted else "done"
    text = (
        f"{state}: {finished.trials} candidates in {finished.seconds:.0f} s "
        f"({finished.failures} failed); {finished.message}"
    )
    return text if finished.schedule_path else f"{text}. No schedule was written."


def report(finished: SearchFinished, again: str) -> None:
    """Print the end of a search, its files, and how to continue if it was stopped."""
    console = output.stdout()
    console.print(summary(finished))
    if finished.schedule_path:
        console.print(f"schedule: {finished.schedule_path}")
    console.print(f"log: {finished.log_path}")
    if finished.interrupted:
        console.print(f"Everything measured is kept; go on with: {again}")
    elif finished.outcome == "undecided":
        console.print(f"On a quiet machine, or with more --minutes, go on with: {again}")
