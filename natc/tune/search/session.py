"""One run of a search: measures candidates, records each, and saves the winner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from natc.errors import TuneError
from natc.host import environment
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.records import Environment, SpaceVersion, Trial, append
from natc.store.schedules import Measurement, Schedule, measured_on, save_schedule
from natc.targets import Target
from natc.tune import events
from natc.tune.history import History, Key, key_of
from natc.tune.measure.measuring import score
from natc.tune.search.measurer import CandidateResult, Measurer

_OBJECTIVE = (
    "geometric mean over the shapes of the seconds of one call, the lower quartile of many calls"
)
# This many of the best candidates are measured again, in turn with the untuned kernel, this many
# times: the best of many noisy numbers is partly luck.
_FINALISTS, _REPEATS = 3, 3


@dataclass
class Session:
    """The trials of one run so far.

    shapes: their keys. untuned: the trial of the space's default decisions. measured: number of
    candidates of this run; failures: the number of them that failed. confirm_seconds: how long
    `save` will take, estimated from one candidate.
    """

    spec: KernelSpec
    target: Target
    space: SpaceVersion
    shapes: list[str]
    log: Path
    machine: Environment
    history: History
    measurer: Measurer
    tell: Callable[[events.Event], None]
    operation: str = FORWARD
    measured: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    untuned: Trial | None = field(default=None, init=False)
    confirm_seconds: float = field(default=0.0, init=False)
    _untuned_decisions: dict[str, int] = field(default_factory=dict, init=False)
    # The untuned kernel and the existing schedule.
    _to_beat: set[Key] = field(default_factory=set, init=False)
    _saved: Trial | None = field(default=None, init=False)

    def measure_untuned(self, decisions: Mapping[str, int]) -> None:
        """Measure the default decisions; raises TuneError when even they fail."""
        self._untuned_decisions = dict(decisions)
        self._to_beat.add(key_of(decisions))
        built = self.measurer.build(decisions)
        self.measurer.measure(built)  # the first one also starts the processes
        start = time.monotonic()
        trial = self._record(decisions, self.measurer.measure(built))
        self.confirm_seconds = (_FINALISTS + 1) * _REPEATS * (time.monotonic() - start)
        if trial.error is not None:
            raise TuneError(
                f"the untuned kernel {self.spec.name} for {self.target.name} failed, so there is "
                f"nothing to compare with: {trial.error}"
            )
        self.untuned = trial

    def measure_known(self, schedule: Schedule) -> None:
        """Measure the existing schedule, so that a worse one cannot replace it."""
        self._to_beat.add(key_of(schedule.decisions))
        if self.history.get(schedule.decisions) is None:
            built = self.measurer.build(schedule.decisions)
            trial = self._record(schedule.decisions, self.measurer.measure(built))
            if trial.error is not None:
                self.tell(events.Note(f"the schedule of {schedule.created} failed: {trial.error}"))

    def measure(
        self, batch: Sequence[Mapping[str, int]], stop: Callable[[], bool], most: int | None
    ) -> None:
        """Measure candidates that have no trial yet, at most `most`, until `stop` is true."""
        new = {key_of(decisions): decisions for decisions in batch}
        unknown = [decisions for decisions in new.values() if self.history.get(decisions) is None]
        building = [(decisions, self.measurer.build(decisions)) for decisions in unknown[:most]]
        for decisions, built in building:
            if stop():
                built.done.cancel()
                continue
            trial = self._record(decisions, self.measurer.measure(built))
            self.measured += 1
            self.failures += trial.error is not None
            self.tell(
                events.TrialMeasured(
                    index=self.measured,
                    score=self.score(trial),
                    best=self.best_score,
                    failures=self.failures,
                    error=trial.error,
                )
            )

    def score(self, trial: Trial) -> float | None:
        """Return the geometric mean of a trial's seconds over the shapes; None for a failure."""
        return score(trial, self.shapes)

    @property
    def has_candidate(self) -> bool:
        """Whether any candidate has a time, besides the kernels to beat."""
        return any(key_of(trial.decisions) not in self._to_beat for _, trial in self._ranked())

    @property
    def untuned_score(self) -> float:
        """The untuned kernel's score, in seconds."""
        return (self.untuned and self.score(self.untuned)) or float("inf")

    @property
    def best_score(self) -> float:
        """The saved winner's score in seconds; before it is saved, the best score so far."""
        if self._saved is not None:
            return self.score(self._saved) or float("inf")
        return self._ranked()[0][0]

    def save(self, *, confirm: bool) -> Path:
        """Write the winner's schedule and return its file.

        confirm: choose by a second measurement of the finalists and the untuned kernel, in turn.
        """
        ranked = self._ranked()
        finalists = [trial for _, trial in ranked[:_FINALISTS]]
        if confirm:
            finalists = self._confirmed(finalists)
        winner = min(finalists, key=lambda trial: self.score(trial) or float("inf"))
        self._saved = winner
        trials = self.history.next_trial
        return save_winner(winner, self.untuned, self.shapes, self.machine, trials)

    def _confirmed(self, finalists: list[Trial]) -> list[Trial]:
        contestants = [self._untuned_decisions]
        contestants += [t.decisions for t in finalists if t.decisions != contestants[0]]
        earlier = [self.history.get(decisions) for decisions in contestants]
        started = [self.measurer.build(decisions) for decisions in contestants]
        outcomes: list[list[CandidateResult]] = [[] for _ in contestants]
        for _ in range(_REPEATS):
            for index, built in enumerate(started):
                outcomes[index].append(self.measurer.measure(built))
        trials = [
            _least(before, self._record(decisions, _best(result)))
            for before, decisions, result in zip(earlier, contestants, outcomes, strict=True)
        ]
        if trials[0].error is None:
            self.untuned = trials[0]
        return [trial for trial in trials if trial.error is None] or finalists

    def _ranked(self) -> list[tuple[float, Trial]]:
        scored = [(self.score(trial), trial) for trial in self.history.all()]
        return sorted(
            ((score, trial) for score, trial in scored if score is not None),
            key=lambda pair: (pair[0], key_of(pair[1].decisions)),
        )

    def _record(self, decisions: Mapping[str, int], outcome: CandidateResult) -> Trial:
        seconds = None
        if outcome.seconds is not None:
            seconds = dict(zip(self.shapes, outcome.seconds, strict=True))
        trial = Trial(
            spec=self.spec.name,
            target=self.target.name,
            operation=self.operation,
            space=self.space,
            decisions=dict(decisions),
            seconds=seconds,
            error=outcome.error,
            features=outcome.features,
            environment=self.machine.id,
            timestamp=environment.now(),
            trial=self.history.next_trial,
        )
        append(self.log, trial)
        self.history.add(trial)
        self.history.next_trial += 1
        return trial


def save_winner(
    winner: Trial,
    untuned: Trial | None,
    shapes: Sequence[str],
    machine: Environment,
    trials: int,
) -> Path:
    """Write a winner's schedule and return its file.

    trials: their number in the log. Raises TuneError if the untuned kernel or the winner failed.
    """
    return save_schedule(
        Schedule(
            spec=winner.spec,
            target=winner.target,
            operation=winner.operation,
            space=winner.space,
            decisions=winner.decisions,
            measured=Measurement(
                seconds=_seconds_of(winner, shapes),
                baseline_seconds=_seconds_of(untuned, shapes),
                score=score(winner, shapes) or 0.0,
                objective=_OBJECTIVE,
                trials=trials,
            ),
            environment=measured_on(machine),
            created=environment.now(),
        )
    )


def _seconds_of(trial: Trial | None, shapes: Iterable[str]) -> dict[str, float]:
    """Return a trial's seconds for each shape; raise TuneError if it has none."""
    if trial is None or trial.seconds is None:
        raise TuneError("there is nothing to save: the untuned kernel or the winner has no time.")
    return {shape: trial.seconds[shape] for shape in shapes}


def _least(before: Trial | None, now: Trial) -> Trial:
    """Return `now` with the lower seconds of both trials: disturbances come and go."""
    if before is None or before.seconds is None or now.seconds is None:
        return now
    seconds = {
        shape: min(time, before.seconds.get(shape, time)) for shape, time in now.seconds.items()
    }
    return msgspec.structs.replace(now, seconds=seconds)


def _best(results: list[CandidateResult]) -> CandidateResult:
    """Return the lowest seconds of each shape, or the first error."""
    samples = [outcome.seconds for outcome in results if outcome.seconds is not None]
    if len(samples) < len(results):
        return next(outcome for outcome in results if outcome.seconds is None)
    lowest = [min(column) for column in zip(*samples, strict=True)]
    return CandidateResult(lowest, None, results[0].features)
