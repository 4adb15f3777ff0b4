"""A search as it runs: best time, speed-up, trials, failures, remaining time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text
from natc.tune.events import CandidatesBuilt, Event, Note, SearchFinished, Started, TrialMeasured

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Listener = Callable[[Event], None]


@contextlib.contextmanager
def watch(*, show: bool) -> Iterator[Listener]:
    """Yield a function that shows each event of a search on stderr.

    On a terminal it is one live line; elsewhere there are lines for the start, for each new best
    candidate and for each note. show: False prints only notes.
    """
    console = output.stderr()
    if not show or not console.is_terminal:
        yield Lines(console, show=show)
        return
    with _bar(console) as progress:
        yield Bar(progress)


class Lines:
    """Shows a search as plain lines, for files and pipes."""

    def __init__(self, console: Console, *, show: bool) -> None:
        self.console, self.show = console, show
        self.best = 1.0

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            self.console.print(f"note: {event.message}")
        elif not self.show:
            return
        elif isinstance(event, Started):
            self.best = event.best
            self.console.print(start_text(event))
        elif isinstance(event, CandidatesBuilt):
            self.console.print(
                f"compiled {event.made} of {event.planned} candidates ({event.dropped} dropped)"
            )
        elif isinstance(event, TrialMeasured) and event.best > self.best:
            self.best = event.best
            self.console.print(f"trial {event.index}: about {_times(event.best)}")


class Bar:
    """Shows a search as one live line under the notes."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task(
            "preparing", total=None, best="", trials="", failures="", left=""
        )
        self.started: Started | None = None
        self.begin = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            self.progress.console.print(f"note: {event.message}")
        elif isinstance(event, CandidatesBuilt):
            self.progress.update(
                self.task,
                total=event.planned,
                completed=event.made,
                description="compiling",
                trials=f"{event.made} of {event.planned}",
                failures=f"{event.dropped} dropped",
            )
        elif isinstance(event, Started):
            self.started, self.begin = event, time.monotonic()
            self.progress.console.print(start_text(event))
            self._show(event.best, 0, 0)
        elif isinstance(event, TrialMeasured):
            self._show(event.best, event.index, event.failures)
        elif isinstance(event, SearchFinished):
            self._show(event.gain.speedup if event.gain else 1.0, event.trials, event.failures)
            self.progress.update(self.task, total=1.0, completed=1.0, left="")

    def _show(self, best: float, trials: int, failures: int) -> None:
        if self.started is None:
            return
        passed = time.monotonic() - self.begin
        # The search ends at whichever limit comes first: the bar shows the nearer one.
        parts, lefts = [0.0], []
        if self.started.minutes:
            parts.append(passed / (60 * self.started.minutes))
            lefts.append(60 * self.started.minutes - passed)
        if self.started.planned:
            parts.append(trials / self.started.planned)
            if trials:
                lefts.append((self.started.planned - trials) * passed / trials)
        self.progress.update(
            self.task,
            total=1.0,
            completed=min(max(parts), 1.0),
            description=self.started.spec,
            best=f"best about {best:.2f}x",
            trials=f"{trials} trials",
            failures=f"{failures} failed",
            left=f"{max(min(lefts), 0):.0f} s left" if lefts else "",
        )


def start_text(event: Started) -> str:
    """Return the first line of a search."""
    text = f"tuning {event.spec} for {event.target} on {', '.join(event.shapes)}: "
    text += f"default {seconds_text(event.baseline)}"
    if event.resumed_trials:
        text += f", best of {event.resumed_trials} earlier trials about {_times(event.best)}"
    return text


def _times(speedup: float) -> str:
    return f"{speedup:.2f} times as fast as the default"


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        *(
            TextColumn(f"{{task.fields[{name}]}}", markup=False)
            for name in ("best", "trials", "failures", "left")
        ),
    ]
    return Progress(*columns, console=console)
