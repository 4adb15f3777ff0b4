"""Measures a round as a search measures its candidates, without a compiler.

Needs torch, tvm-ffi and natc. Every result is on disk before the next measurement begins: after a
kill, the same call continues where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from natc.host import environment
from natc.spec import KernelSpec
from natc.store.records import Trial, append
from natc.tune.events import Event, Note
from natc.tune.history import History, key_of, score
from natc.tune.measure import rounds
from natc.tune.measure.confirm import conclude, judge
from natc.tune.measure.measurer import BuiltLibrary, Timer, Times
from natc.tune.measure.race import Decisions, Race, TunedKernel
from natc.tune.measure.rounds import Round
from natc.tune.measure.workload import keys_of


@dataclass
class Summary:
    """The outcome of measuring a round.

    measured, failures: numbers of candidates in this run. untuned: seconds of the default.
    speedup: how many times as fast the best candidate seems. complete: whether every measurement
    is done. message: the verdict in words, once there is one.
    """

    directory: Path
    name: str
    candidates: int
    measured: int = 0
    failures: int = 0
    seconds: float = 0.0
    complete: bool = False
    untuned: float | None = None
    speedup: float | None = None
    message: str = ""
    notes: list[str] = field(default_factory=list)


class TimeLibraries(Protocol):
    """A function that times libraries in alternation; see `Measurer.measure`."""

    def __call__(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        """Return the seconds of one call for each turn, library and shape."""


class _InRound:
    """A measurer whose candidates lie in the round's directory."""

    builders, overlap = 16, True

    def __init__(self, directory: Path, round_: Round, measure: TimeLibraries) -> None:
        self.measure = measure
        self._libraries = {
            key_of(each.decisions): BuiltLibrary(
                directory / each.library, each.sha256, each.features or {}
            )
            for each in round_.candidates
        }

    def build(
        self, decisions: Mapping[str, int], *, may_spill: bool = False
    ) -> Future[BuiltLibrary]:
        done: Future[BuiltLibrary] = Future()
        done.set_result(self._libraries[key_of(decisions)])
        return done


class _InOrder:
    """Proposes a round's candidates in their order."""

    def __init__(self, candidates: Sequence[Decisions]) -> None:
        self._waiting = list(candidates)

    def propose(self) -> Sequence[Decisions]:
        return self._waiting

    def learn(self, trials: Iterable[Trial]) -> None:
        pass

    def pass_over(self, candidates: Sequence[Decisions]) -> None:
        keys = {key_of(decisions) for decisions in candidates}
        self._waiting = [each for each in self._waiting if key_of(each) not in keys]

    def worth_measuring(
        self, built: Sequence[tuple[Decisions, Mapping[str, float]]]
    ) -> Sequence[bool]:
        return [True] * len(built)


def measure(
    directory: Path,
    *,
    until: float | None = None,
    on_event: Callable[[Event], None] | None = None,
    with_: TimeLibraries | None = None,
) -> Summary:
    """Measure the candidates of a round that have no time yet; return a summary.

    until: when to stop, by `time.monotonic`. with_: times libraries; by default a process on this
    machine does. Raises TuneError or TargetError, before anything is measured, if this machine
    cannot or may not measure the round, and TuneError if the default itself fails.
    """
    round_ = rounds.read(directory)
    rounds.check(directory, round_)
    with contextlib.ExitStack() as stack:
        if with_ is None:
            names = (round_.spec, round_.target, round_.shapes, round_.operation)
            with_ = stack.enter_context(Timer(*names)).measure
        measurer = _InRound(directory, round_, with_)
        return _measure(directory, round_, measurer, until, on_event or (lambda event: None))


def _measure(
    directory: Path,
    round_: Round,
    measurer: _InRound,
    until: float | None,
    tell: Callable[[Event], None],
) -> Summary:
    begin = time.monotonic()
    summary = Summary(directory, round_.name, len(round_.candidates))
    spec, log = KernelSpec.parse(round_.spec), directory / rounds.MEASURED
    machine = environment.collect()
    keys = keys_of(round_.shapes, spec)
    history = History(log, spec, round_.space, keys, machine, round_.operation)
    summary.notes = history.notes
    for note in history.notes:
        tell(Note(note))
    append(log, machine)
    default, *candidates = (candidate.decisions for candidate in round_.candidates)
    problem = TunedKernel(round_.spec, round_.target, round_.operation, round_.space, keys)
    race = Race(
        problem,
        default,
        measurer,
        history,
        machine,
        partial(append, log),
        tell,
        time.monotonic,
    )

    def is_over() -> bool:
        return until is not None and time.monotonic() >= until

    earlier = history.get(default)
    rival = candidates[0] if round_.present else None
    if all(history.get(each) is not None for each in candidates) and history.comparisons:
        summary.complete = True
        summary.message = judge(history.comparisons, default, rival).message
    elif not is_over():
        earlier = race.measure_default()
        if race.search(_InOrder(candidates), is_over):
            verdict = conclude(race, rival, until)
            summary.message = verdict.message
            summary.complete = verdict.outcome != "undecided" or not is_over()
    summary.untuned = None if earlier is None else score(earlier, keys)
    summary.speedup = race.best_speedup if summary.untuned else None
    summary.measured, summary.failures = race.measured, race.failures
    summary.seconds = time.monotonic() - begin
    return summary
