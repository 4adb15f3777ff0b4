"""Measures a round: every candidate a few times, then the fastest ones more often.

Needs torch, tvm-ffi and natc, no compiler. Every result is on disk before the next measurement
begins: after a kill, the same call continues where it stopped.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from natc.host import environment
from natc.spec import KernelSpec
from natc.store.records import Trial, append
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.events import Event, Note, TrialMeasured
from natc.tune.history import Key, ids_of, key_of
from natc.tune.measure import rounds, worker
from natc.tune.measure.processes import JobError, Process, why
from natc.tune.measure.rounds import Candidate, Round
from natc.tune.measure.workload import keys_of

# (samples of each shape, share of the candidates that get so many samples)
RUNGS = ((3, 1.0), (10, 0.25), (30, 0.0625))
# At least this many candidates reach the last rung.
_FINALISTS = 4
# The finalists are measured this many times more, in turn: the best noisy number is partly luck.
_REPEATS = 3
_START_LIMIT, _MEASURE_LIMIT = 300.0, 30.0
_CONFIRM = RUNGS[-1][0] * _REPEATS


class MeasureCandidate(Protocol):
    """A function that measures a candidate; raises JobError, TimeoutError or ChildProcessError."""

    def __call__(self, candidate: Candidate, samples: int, checked: bool) -> list[float]:
        """Return the seconds of one call for each shape."""


@dataclass
class Summary:
    """The outcome of measuring a round.

    measured, failures: numbers of candidates in this run. untuned, best: scores in seconds.
    complete: whether every measurement of the round is done.
    """

    directory: Path
    name: str
    candidates: int
    measured: int = 0
    failures: int = 0
    seconds: float = 0.0
    complete: bool = False
    untuned: float | None = None
    best: float | None = None
    notes: list[str] = field(default_factory=list)


class Workers:
    """Measures candidates in a separate process; starts a new one after a crash or a hang."""

    def __init__(self, directory: Path, round_: Round) -> None:
        self._directory, self._round = directory, round_
        self._stack = ExitStack()
        scratch = self._stack.enter_context(temporary_directory("measure"))
        self._process = Process(scratch)
        self._started = False
        self.restarts = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()
        self._stack.close()

    def __call__(self, candidate: Candidate, samples: int, checked: bool) -> list[float]:
        """Return the seconds of each shape; raises what `Process.run` raises."""
        round_ = self._round
        if not self._started:
            # The first job waits for torch, and on a GPU for the driver.
            self._process.run(worker.is_well, (round_.target,), _START_LIMIT)
            self._started = True
        arguments = (
            *(round_.spec, round_.target, str(self._directory / candidate.library)),
            *(round_.shapes, round_.operation, samples, checked),
        )
        try:
            return list(self._process.run(worker.measure, arguments, _MEASURE_LIMIT))
        except JobError:
            self._keep_if_well()
            raise
        except (TimeoutError, ChildProcessError):
            self._restart()
            raise

    def _keep_if_well(self) -> None:
        try:
            self._process.run(worker.is_well, (self._round.target,), _MEASURE_LIMIT)
        except (JobError, TimeoutError, ChildProcessError):
            self._restart()

    def _restart(self) -> None:
        self._process.stop()
        self._started = False
        self.restarts += 1


def measure(
    directory: Path,
    *,
    until: float | None = None,
    on_event: Callable[[Event], None] | None = None,
    with_: MeasureCandidate | None = None,
) -> Summary:
    """Measure the candidates of a round that have no time yet; return a summary.

    until: when to stop, by `time.monotonic`. with_: measures one candidate; by default a process
    on this machine does. Raises TuneError or TargetError, before anything is measured, if this
    machine cannot or may not measure the round.
    """
    round_ = rounds.read(directory)
    rounds.check(directory, round_)
    tell = on_event or (lambda event: None)
    with contextlib.ExitStack() as stack:
        run = with_ or stack.enter_context(Workers(directory, round_))
        return _Measuring(directory, round_, run, tell).run(until)


class _Measuring:
    def __init__(
        self, directory: Path, round_: Round, run: MeasureCandidate, tell: Callable[[Event], None]
    ) -> None:
        self._directory, self._round, self._measure, self._tell = directory, round_, run, tell
        self._spec, self._target = KernelSpec.parse(round_.spec), Target.parse(round_.target)
        self._shapes = keys_of(round_.shapes, self._spec)
        self._log = directory / rounds.MEASURED
        self._machine = environment.collect()
        self._summary = Summary(directory, round_.name, len(round_.candidates))
        self._latest: dict[Key, Trial] = {}
        self._next = 0
        self._recall()
        append(self._log, self._machine)

    def run(self, until: float | None) -> Summary:
        start = time.monotonic()
        summary = self._summary

        def is_over() -> bool:
            return until is not None and time.monotonic() >= until

        with contextlib.suppress(_TimeIsUp):
            for samples, share in RUNGS:
                self._rung(self._ahead(share), samples, is_over)
            self._confirm(is_over)
            summary.complete = True
        summary.seconds = time.monotonic() - start
        scores = [s for s in map(self._score, self._round.candidates) if s is not None]
        summary.untuned = self._score(self._round.candidates[0])
        summary.best = min(scores, default=None)
        return summary

    def _recall(self) -> None:
        """Read the trials that this machine measured before."""
        records = rounds.measured(self._directory)
        same = ids_of(self._machine, records.records)
        elsewhere = 0
        for trial in records.trials:
            self._next = max(self._next, trial.trial + 1)
            if trial.environment in same:
                self._latest[key_of(trial.decisions)] = trial
            else:
                elsewhere += 1
        notes = records.problems
        if elsewhere:
            notes.append(
                f"{self._log}: {elsewhere} trials were measured on another machine; "
                "measuring again."
            )
        self._summary.notes = notes
        for note in notes:
            self._tell(Note(note))

    def _ahead(self, share: float) -> list[Candidate]:
        """Return the kernels to beat, then the fastest `share` of the other candidates."""
        always = self._round.candidates[: 1 + self._round.present]
        candidates = self._round.candidates[len(always) :]
        if share < 1:
            scored = [(self._score(candidate), candidate) for candidate in candidates]
            alive = [(score, candidate) for score, candidate in scored if score is not None]
            alive.sort(key=lambda pair: (pair[0], key_of(pair[1].decisions)))
            most = max(_FINALISTS, math.ceil(share * len(self._round.candidates)))
            candidates = [candidate for _, candidate in alive[:most]]
        return [*always, *candidates]

    def _rung(
        self, candidates: Sequence[Candidate], samples: int, is_over: Callable[[], bool]
    ) -> None:
        for candidate in candidates:
            trial = self._latest.get(key_of(candidate.decisions))
            done = trial is not None and (trial.error is not None or _samples(trial) >= samples)
            if done:
                continue
            if is_over():
                raise _TimeIsUp
            outcome = self._try(candidate, samples, checked=trial is not None)
            self._record(candidate, outcome, samples)

    def _confirm(self, is_over: Callable[[], bool]) -> None:
        """Measure the finalists and the kernels to beat again, in turn."""
        always = 1 + self._round.present
        finalists = self._ahead(RUNGS[-1][1])[: always + _FINALISTS]
        latest = [self._latest[key_of(candidate.decisions)] for candidate in finalists]
        pairs = list(zip(finalists, latest, strict=True))
        # A candidate that failed, or that an earlier run confirmed, is not measured again.
        unconfirmed = [c for c, t in pairs if t.error is None and _samples(t) < _CONFIRM]
        samples: list[list[list[float]]] = [[] for _ in unconfirmed]
        errors: dict[int, str] = {}
        for _ in range(_REPEATS):
            for index, candidate in enumerate(unconfirmed):
                if is_over():
                    raise _TimeIsUp
                seconds, error = self._try(candidate, RUNGS[-1][0], checked=True)
                if error is not None:
                    errors[index] = error
                elif seconds is not None:
                    samples[index].append(seconds)
        for index, candidate in enumerate(unconfirmed):
            error = errors.get(index)
            columns = zip(*samples[index], strict=True)
            least = None if error else [min(column) for column in columns]
            self._record(candidate, (least, error), _CONFIRM)

    def _try(
        self, candidate: Candidate, samples: int, *, checked: bool
    ) -> tuple[list[float] | None, str | None]:
        try:
            return self._measure(candidate, samples, checked), None
        except (JobError, TimeoutError, ChildProcessError) as error:
            return None, why(error, "to run")

    def _record(
        self, candidate: Candidate, outcome: tuple[list[float] | None, str | None], samples: int
    ) -> None:
        seconds, error = outcome
        trial = Trial(
            spec=self._round.spec,
            target=self._round.target,
            operation=self._round.operation,
            space=self._round.space,
            decisions=candidate.decisions,
            seconds=None if seconds is None else dict(zip(self._shapes, seconds, strict=True)),
            error=error,
            environment=self._machine.id,
            timestamp=environment.now(),
            trial=self._next,
            samples=samples,
            features=candidate.features,
        )
        append(self._log, trial)
        self._next += 1
        self._latest[key_of(candidate.decisions)] = trial
        summary = self._summary
        summary.measured += 1
        summary.failures += error is not None
        scores = [s for s in map(self._score, self._round.candidates) if s is not None]
        self._tell(
            TrialMeasured(
                index=summary.measured,
                score=self._score(candidate),
                best=min(scores, default=math.inf),
                failures=summary.failures,
                error=error,
            )
        )

    def _score(self, candidate: Candidate) -> float | None:
        trial = self._latest.get(key_of(candidate.decisions))
        return None if trial is None else score(trial, self._shapes)


class _TimeIsUp(Exception):
    pass


def score(trial: Trial, shapes: Sequence[str]) -> float | None:
    """Return the geometric mean of a trial's seconds over `shapes`; None for a failure."""
    if trial.seconds is None or not set(shapes) <= set(trial.seconds):
        return None
    return statistics.geometric_mean(trial.seconds[shape] for shape in shapes)


def confirmed(trial: Trial) -> bool:
    """Return whether a candidate has as many samples as finalists get."""
    return _samples(trial) >= _CONFIRM


def _samples(trial: Trial) -> int:
    return trial.samples or _CONFIRM
