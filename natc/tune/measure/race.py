"""The search over candidates: builds them, and times each in alternation with the default.

A few turns are enough for a candidate that is surely slower than the default; the others get
more. The best ones are then compared with the default by turns of their own (`confirm.py`): the
best of many noisy numbers is partly luck. Where libraries are built and timed is the business of
a `Measurer`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import NamedTuple, Protocol

from natc.errors import TuneError
from natc.host import environment
from natc.store.records import Environment, Record, SpaceVersion, Trial
from natc.tune import events
from natc.tune.history import History, key_of
from natc.tune.measure.measurer import BuiltLibrary, Measurer, PendingLibrary, Times
from natc.tune.measure.pairs import interval, log_ratios
from natc.tune.measure.processes import JobError, why

Decisions = Mapping[str, int]

# Turns of a candidate beside the default. After each number it is dropped if it is slower than
# the default, but for this chance to the contrary (for both sides of the interval).
SCREENING, _SCREENING_LEVEL = (4, 8, 16), 1 / 8
FINALISTS = 4
# A job of the measuring process takes about so many seconds at most.
_JOB_SECONDS = 4.0
# Builds of one phase, for each builder: at most so many, and as many as take so long at most, so
# that results come while there is time to measure. The first phase has one.
_PHASE, _PHASE_SECONDS = 4, 15.0


class CandidateSource(Protocol):
    """Chooses the candidates to build and measure."""

    def propose(self) -> Sequence[Decisions]:
        """Return the next candidates, the most promising first; none if all were proposed."""
        ...

    def learn(self, trials: Iterable[Trial]) -> None:
        """Take in results."""
        ...

    def pass_over(self, candidates: Sequence[Decisions]) -> None:
        """Never propose these candidates."""
        ...

    def worth_measuring(
        self, built: Sequence[tuple[Decisions, Mapping[str, float]]]
    ) -> Sequence[bool]:
        """Return for each built candidate, decisions and features, whether to measure it."""
        ...


class TunedKernel(NamedTuple):
    """A kernel's operation on a target, by names; its design space, and the shapes' keys."""

    spec: str
    target: str
    operation: str
    space: SpaceVersion
    shapes: list[str]


class Race:
    """Measures candidates of one problem; each result is recorded before the next begins.

    default: the default decisions. measured: number of candidates of this run; failures: the
    number of them that failed. used_up: whether every candidate of the proposer is measured.
    seconds_a_turn: of one library, as last measured; seconds_a_build: as in the last phase.
    """

    def __init__(
        self,
        problem: TunedKernel,
        default: Decisions,
        measurer: Measurer,
        history: History,
        machine: Environment,
        record: Callable[[Record], None],
        tell: Callable[[events.Event], None],
        clock: Callable[[], float],
    ) -> None:
        """record: keeps a record on disk. clock: seconds, such as `time.monotonic`."""
        self.problem, self.default = problem, dict(default)
        self.measurer, self.history, self.machine = measurer, history, machine
        self.record, self.tell, self.clock = record, tell, clock
        self.measured = self.failures = 0
        self.used_up = False
        self.seconds_a_turn, self.seconds_a_build = 1.0, 0.0
        self._default: BuiltLibrary | None = None
        self._codes: dict[str, Trial] = {}
        self._started = 0

    @property
    def default_library(self) -> BuiltLibrary:
        """The default's library, built when it is first asked for.

        Raises TuneError if it cannot be built.
        """
        if self._default is None:
            try:
                self._default = self.measurer.build(self.default, may_spill=True).result()
            except Exception as error:
                raise self._nothing_to_compare(why(error, "to build")) from None
        return self._default

    def measure_default(self) -> Trial:
        """Measure the default alone; raises TuneError if it fails."""
        library = self.default_library
        turns: Times = []
        try:
            while len(turns) < SCREENING[0]:
                turns += self.turns([library], SCREENING[0] - len(turns))
        except Exception as error:
            raise self._nothing_to_compare(why(error, "to run")) from None
        trial = self._trial(self.default, library, self.times_of(turns, 0), 1.0, len(turns))
        self._codes[library.sha256] = trial
        return trial

    def search(
        self, proposer: CandidateSource, is_over: Callable[[], bool], most: int | None = None
    ) -> bool:
        """Build and measure proposed candidates until `is_over`, `most` candidates at most.

        Returns `used_up`.
        """
        waiting: deque[Decisions] = deque()
        phase = self.measurer.builders
        pending = self._start(proposer, waiting, phase, most)
        while pending and not is_over():
            phase = self._builds_of_a_phase()
            following = []
            if self.measurer.overlap:
                following = self._start(proposer, waiting, phase, most)
            proposer.learn(self._screen_all(pending, proposer, is_over))
            if not following and not is_over():
                phase = self._builds_of_a_phase()
                following = self._start(proposer, waiting, phase, most)
            pending = following
        for _, library in pending:
            library.cancel()
        enough = most is not None and self._started >= most
        self.used_up = not pending and not is_over() and not enough
        return self.used_up

    def finalists(self, but: Sequence[Decisions] = ()) -> list[Trial]:
        """Return the best trials of candidates that seem faster than the default, the best first.

        but: decisions to leave out.
        """
        left_out = {key_of(decisions) for decisions in (self.default, *but)}
        ranked = sorted(
            (trial.ratio, key_of(trial.decisions), trial)
            for trial in self.history.all()
            if trial.ratio is not None and trial.ratio < 1 and trial.samples
        )
        return [trial for _, key, trial in ranked if key not in left_out][:FINALISTS]

    @property
    def best_speedup(self) -> float:
        """How many times as fast as the default the best candidate seems; at least 1."""
        best = self.finalists()
        return 1 / best[0].ratio if best and best[0].ratio else 1.0

    def turns(self, libraries: Sequence[BuiltLibrary], most: int) -> Times:
        """Return turns of libraries timed in alternation, at most `most`, as time allows.

        Raises the errors of `Measurer.measure`.
        """
        each = self.seconds_a_turn * len(libraries)
        count = max(1, min(most, int(_JOB_SECONDS / max(each, 1e-9))))
        begin = self.clock()
        times = self.measurer.measure(libraries, count)
        self.seconds_a_turn = (self.clock() - begin) / (count * len(libraries))
        return times

    def times_of(self, turns: Times, library: int) -> dict[str, float]:
        """Return shape -> seconds of one call: the lower quartile over turns."""
        columns = zip(*(turn[library] for turn in turns), strict=True)
        return dict(zip(self.problem.shapes, map(_lower_quartile, columns), strict=True))

    def fail(self, decisions: Decisions, error: str) -> Trial:
        """Record that a candidate failed."""
        return self._trial(decisions, None, None, None, None, error)

    def _builds_of_a_phase(self) -> int:
        """Return how many candidates to build before the next are measured."""
        each = int(_PHASE_SECONDS / max(self.seconds_a_build, 1e-9))
        return self.measurer.builders * max(1, min(_PHASE, each))

    def _start(
        self, proposer: CandidateSource, waiting: deque[Decisions], count: int, most: int | None
    ) -> list[tuple[Decisions, PendingLibrary]]:
        """Start building the next `count` candidates that have no trial; fewer at the end."""
        if most is not None:
            count = min(count, most - self._started)
        started: list[tuple[Decisions, PendingLibrary]] = []
        while len(started) < count:
            if not waiting:
                proposed = proposer.propose()
                if not proposed:
                    break
                proposer.pass_over(proposed)
                waiting.extend(proposed)
                continue
            decisions = waiting.popleft()
            if self.history.get(decisions) is None:
                started.append((decisions, self.measurer.build(decisions)))
                self._started += 1
        return started

    def _screen_all(
        self,
        pending: Sequence[tuple[Decisions, PendingLibrary]],
        proposer: CandidateSource,
        is_over: Callable[[], bool],
    ) -> list[Trial]:
        """Measure candidates until `is_over`; return a trial for each measured one.

        Candidates that are not worth measuring have no trial, so a later search may measure them.
        """
        built: list[tuple[Decisions, BuiltLibrary | str]] = []
        trials = []
        begin = self.clock()
        for index, (decisions, library) in enumerate(pending):
            if is_over():
                for _, unneeded in pending[index:]:
                    unneeded.cancel()
                break
            try:
                built.append((decisions, library.result()))
            except CancelledError:
                continue
            except Exception as error:
                built.append((decisions, why(error, "to build")))
            if self.measurer.overlap:
                trials += [self._screen(*each) for each in _worth_measuring(built, proposer)]
                built = []
        if not self.measurer.overlap:
            each = math.ceil(len(pending) / self.measurer.builders)
            self.seconds_a_build = (self.clock() - begin) / each
        # Where builds disturb, all of them come first.
        for decisions, library_or_error in _worth_measuring(built, proposer):
            if is_over():
                break
            trials.append(self._screen(decisions, library_or_error))
        return trials

    def _screen(self, decisions: Decisions, library: BuiltLibrary | str) -> Trial:
        """Measure a candidate beside the default until it is surely slower; record the trial."""
        if isinstance(library, str):
            trial = self.fail(decisions, library)
        elif library.sha256 in self._codes:
            # The same code takes the same time.
            twin = self._codes[library.sha256]
            trial = self._trial(decisions, library, twin.seconds, twin.ratio, 0, twin.error)
        else:
            trial = self._codes[library.sha256] = self._beside_default(decisions, library)
        self.measured += 1
        self.failures += trial.error is not None
        self.tell(
            events.TrialMeasured(
                index=self.measured,
                speedup=None if trial.ratio is None else 1 / trial.ratio,
                best=self.best_speedup,
                failures=self.failures,
                error=trial.error,
            )
        )
        return trial

    def _beside_default(self, decisions: Decisions, library: BuiltLibrary) -> Trial:
        turns: Times = []
        median = math.inf
        try:
            for count in SCREENING:
                while len(turns) < count:
                    pair = [self.default_library, library]
                    turns += self.turns(pair, count - len(turns))
                ratios = interval(log_ratios(turns, 1, 0), _SCREENING_LEVEL)
                median = ratios.median
                if ratios.low > 0:
                    break
        except (JobError, TimeoutError, ChildProcessError) as error:
            return self.fail(decisions, why(error, "to run"))
        seconds = self.times_of(turns, 1)
        return self._trial(decisions, library, seconds, math.exp(median), len(turns))

    def _trial(
        self,
        decisions: Decisions,
        library: BuiltLibrary | None,
        seconds: dict[str, float] | None,
        ratio: float | None,
        samples: int | None,
        error: str | None = None,
    ) -> Trial:
        """Record a trial and return it."""
        problem = self.problem
        trial = Trial(
            spec=problem.spec,
            target=problem.target,
            operation=problem.operation,
            space=problem.space,
            decisions=dict(decisions),
            seconds=seconds,
            error=error,
            ratio=ratio,
            samples=samples,
            features=(library and library.features) or None,
            environment=self.machine.id,
            timestamp=environment.now(),
            trial=self.history.next_trial,
        )
        self.record(trial)
        self.history.add(trial)
        self.history.next_trial += 1
        return trial

    def _nothing_to_compare(self, error: str) -> TuneError:
        return TuneError(
            f"the default of {self.problem.spec} {self.problem.operation} for "
            f"{self.problem.target} failed, so there is nothing to compare with: {error}"
        )


def _worth_measuring(
    built: Sequence[tuple[Decisions, BuiltLibrary | str]], proposer: CandidateSource
) -> list[tuple[Decisions, BuiltLibrary | str]]:
    """Return the failed builds, and the candidates that the proposer wants to be measured."""
    libraries = [
        (decisions, library) for decisions, library in built if isinstance(library, BuiltLibrary)
    ]
    asked = [(decisions, library.features) for decisions, library in libraries]
    wanted = {
        library.path
        for (_, library), is_wanted in zip(libraries, proposer.worth_measuring(asked))
        if is_wanted
    }
    return [each for each in built if isinstance(each[1], str) or each[1].path in wanted]


def _lower_quartile(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=4)[0] if len(samples) > 3 else min(samples)
