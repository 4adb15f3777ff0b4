"""The unfinished searches of a set of kernels, and the table of its gains, read from the logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natc.compiler.space import space_for
from natc.errors import NatcError
from natc.host import environment
from natc.store import workspace
from natc.store.records import Environment, SearchEnd, SpaceVersion, Trial, read_log
from natc.store.schedules import Gain, load_schedule
from natc.targets import Target
from natc.tune.history import ids_of, key_of
from natc.tune.measure.measurer import MakeMeasurer
from natc.tune.measure.workload import default_shapes, keys_of
from natc.tune.sets import Tuned

# A search ends within a few seconds of its limit; it is finished if no more than this is left.
_LEAST_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class SetRow:
    """A line of a set's table.

    candidates: how many this machine measured. outcome: of the last search, as in
    `natc.tune.events.SearchFinished`, or "" before it. speedup: how many times as fast as the
    default the schedule in the kernel's own file is, None without one; gain: the proof, if the
    schedule has one; predicted: whether a model expects it and nothing was timed. path: the
    schedule, or else the log; None without both. problem: why the search failed, or "".
    """

    spec: str
    operation: str
    candidates: int
    outcome: str
    speedup: float | None
    gain: Gain | None
    predicted: bool
    path: Path | None
    problem: str


class SetPlan:
    """Knows the unfinished searches of a set, and the time that each may still take.

    All that it knows is in the logs, so a new plan continues a run that was stopped or killed.
    """

    def __init__(
        self, searches: Sequence[Tuned], target: Target, minutes: float, machine: Environment
    ) -> None:
        """minutes: for each search. machine: the machine that times candidates."""
        self._target, self._machine = target, machine
        self._share = 60 * minutes
        self._ends = {search: self._read_ends(search) for search in searches}
        self._problems: dict[Tuned, str] = {}
        self._ended: set[Tuned] = set()

    def unfinished(self) -> list[Tuned]:
        """Return the searches that have not ended yet, in order.

        A search has ended when its space is used up, when it had its time, or when it gave up
        because no further candidate promised a gain.
        """
        return [search for search in self._ends if not self._is_finished(search)]

    def minutes_for_next(self) -> float:
        """Return how long the next search may take: its limit less the time it has taken."""
        seconds = self._share - self._spent(self.unfinished()[0])
        return max(seconds, _LEAST_SECONDS) / 60

    def ended(self, search: Tuned, problem: str = "") -> None:
        """Take note that a search has ended; problem: why it failed, or ""."""
        # Whatever its log says: no search is repeated in one run.
        self._ended.add(search)
        self._ends[search] = self._read_ends(search)
        if problem:
            self._problems[search] = problem

    def rows(self) -> list[SetRow]:
        """Return the set's table, a row for each search."""
        return [self._row(search) for search in self._ends]

    def _is_finished(self, search: Tuned) -> bool:
        if search in self._ended or any(end.used_up for end in self._ends[search]):
            return True
        return self._share - self._spent(search) < _LEAST_SECONDS

    def _spent(self, search: Tuned) -> float:
        """Return the seconds that a search had: all that it was allowed, unless it was stopped."""
        return sum(
            end.seconds if end.outcome == "interrupted" or end.limit is None else end.limit
            for end in self._ends[search]
        )

    def _read_ends(self, search: Tuned) -> list[SearchEnd]:
        """Return how earlier searches for the same candidates ended on the same machine."""
        spec, operation = search
        records, _ = read_log(workspace.log_path(spec, self._target, operation))
        same = ids_of(self._machine, records)
        shapes = keys_of(default_shapes(spec, self._target), spec)
        return [
            record
            for record in records
            if isinstance(record, SearchEnd)
            and record.environment in same
            and (record.space, record.shapes) == (self._space(search), shapes)
        ]

    def _space(self, search: Tuned) -> SpaceVersion:
        space = space_for(self._target, search.operation, search.spec)
        return SpaceVersion(space.name, space.version)

    def _row(self, search: Tuned) -> SetRow:
        spec, operation = search
        log = workspace.log_path(spec, self._target, operation)
        records, _ = read_log(log)
        same, space = ids_of(self._machine, records), self._space(search)
        candidates = {
            key_of(record.decisions)
            for record in records
            if isinstance(record, Trial) and record.environment in same and record.space == space
        }
        problem = self._problems.get(search, "")
        path = log if log.exists() else None
        gain = speedup = None
        predicted = False
        try:
            schedule = load_schedule(spec, self._target, operation)
        except NatcError as error:
            problem = problem or str(error)
        else:
            if schedule is not None and schedule.space == space:
                gain = schedule.measured.gain if schedule.measured else None
                speedup = schedule.speedup
                predicted = schedule.predicted is not None
                path = workspace.find_schedule(spec, self._target, operation)
        ends = self._ends[search]
        outcome = ends[-1].outcome if ends else ""
        count = len(candidates)
        return SetRow(
            spec.name, operation, count, outcome, speedup, gain, predicted, path, problem
        )


def machine_of(
    search: Tuned, target: Target, measurer: MakeMeasurer | None, seed: int
) -> Environment:
    """Return the machine that times a search's candidates; measurer: None for this machine."""
    if measurer is None:
        return environment.collect(seed)
    spec, operation = search
    shapes = default_shapes(spec, target)
    with measurer(spec, target, shapes, operation, seed, lambda event: None) as machines:
        return machines.machine
