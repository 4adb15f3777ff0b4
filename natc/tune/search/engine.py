"""The search for one kernel on one target, from the first candidate to the schedule file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from natc.compiler.space import space_for
from natc.errors import ArgumentError, NatcError, ScheduleError, SpecError
from natc.host import environment
from natc.host.detect import require_runs_here
from natc.host.toolchain import check_compilers
from natc.operations import FORWARD, operations_of, tuned_as
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.files import make_directory, writable
from natc.store.records import SpaceVersion, append
from natc.store.schedules import Schedule, load_schedule
from natc.targets import Target
from natc.tune.events import Event, Note, SearchFinished, Started
from natc.tune.history import History
from natc.tune.measure.workload import Shape, default_shapes, keys_of
from natc.tune.search.interrupts import deferred
from natc.tune.search.measurer import Measurer
from natc.tune.search.proposer import Proposer, decisions_of
from natc.tune.search.ranking import Ranking
from natc.tune.search.session import Session

# After this many rounds without a new candidate, the space is exhausted.
_IDLE_ROUNDS = 4
_EXAMPLES = 128  # earlier trials that a new cost model learns from, the latest ones
_LEAST_BATCH = 6


def tune(
    spec: KernelSpec,
    target: Target,
    *,
    operation: str = FORWARD,
    shapes: Sequence[Shape] | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> SearchFinished:
    """Search for the fastest schedule of a kernel's operation and write it to the workspace.

    operation: `forward`, whose schedule serves all forward operations, or the name of another.
    shapes: inputs (batch, size of each axis, heads), by default NAT's four levels; the search
    minimizes the geometric mean of their times. trials, minutes: when to stop, whichever comes
    first; with neither, when every candidate was tried. seed: makes the proposals repeatable.
    on_event: called with each event, from Started to SearchFinished.

    Every trial is in the log before the next begins, and a candidate in the log is not measured
    again. Ctrl-C ends the search like a time limit. If neither this run nor an earlier one
    measured a candidate, schedules do not change and `SearchFinished.schedule_path` is None.
    Raises SpecError for an operation that the kernel lacks, ArgumentError for an impossible shape
    or limit, TargetError if this machine cannot run the target's code, CompilerNotFound, NatcError
    if the workspace cannot be written, ScheduleError if the existing schedule is damaged or was
    written by a newer natc, and TuneError if the untuned kernel itself fails.
    """
    tell = on_event or (lambda event: None)
    start = time.monotonic()
    chosen = list(shapes or default_shapes(spec, target))
    _check(spec, target, operation, chosen, trials, minutes)
    log = workspace.log_path(spec, target, operation)
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    present = present_schedule(spec, target, operation, space)
    machine = environment.collect(seed)
    keys = keys_of(chosen, spec)
    history = History(log, spec, space, keys, machine, operation)
    append(log, machine)
    for note in history.notes:
        tell(Note(note))

    interrupted = False
    with Measurer(spec, target, chosen, operation) as measurer:
        session = Session(
            spec, target, space, keys, log, machine, history, measurer, tell, operation
        )
        batch = max(_LEAST_BATCH, measurer.builders)
        with deferred():
            proposer: Any
            if operation == FORWARD and target.kind == "llvm":
                proposer = Proposer(spec, target, chosen[0], batch=batch, seed=seed)
            else:
                proposer = Ranking(spec, target, operation, batch=batch, seed=seed)
            untuned = _decided(proposer.candidate({}))
        session.measure_untuned(untuned)
        if present is not None:
            session.measure_known(present)
        tell(
            Started(
                spec=spec.name,
                target=target.name,
                shapes=tuple(keys),
                baseline=session.untuned_score,
                best=session.best_score,
                resumed_trials=history.resumed,
                planned=trials,
                minutes=minutes,
            )
        )
        limit = None if minutes is None else start + 60 * minutes - session.confirm_seconds

        def is_over() -> bool:
            used_up = trials is not None and session.measured >= trials
            return used_up or (limit is not None and time.monotonic() >= limit)

        exhausted = False
        path = None
        try:
            _learn(proposer, session)
            exhausted = _search(proposer, session, is_over, trials)
            # The untuned kernel wins only if another candidate was measured.
            if exhausted or session.has_candidate:
                path = session.save(confirm=True)
        except KeyboardInterrupt:
            interrupted = True
            if exhausted or session.has_candidate:
                path = session.save(confirm=False)
    finished = SearchFinished(
        schedule_path=path,
        log_path=log,
        best=session.best_score,
        baseline=session.untuned_score,
        trials=session.measured,
        failures=session.failures,
        seconds=time.monotonic() - start,
        interrupted=interrupted,
    )
    tell(finished)
    return finished


def _decided(candidate: Any) -> dict[str, int]:
    return candidate if isinstance(candidate, dict) else decisions_of(candidate)


def _check(
    spec: KernelSpec,
    target: Target,
    operation: str,
    shapes: Sequence[Shape],
    trials: int | None,
    minutes: float | None,
) -> None:
    """Raise now for arguments that would fail only after measurements were made."""
    check_problem(spec, operation, shapes)
    for name, value in (("trials", trials), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise ArgumentError(f"{name} is {value}; it must be above 0, or None for no limit.")
    require_runs_here(target, "tune on a machine that it runs on")
    check_compilers(target)


def check_problem(spec: KernelSpec, operation: str, shapes: Sequence[Shape]) -> None:
    """Raise SpecError if the kernel lacks the operation, ArgumentError for a bad shape."""
    names = tuple(dict.fromkeys(map(tuned_as, operations_of(spec))))
    if operation not in names:
        raise SpecError(
            f"operation is {operation!r}; the operations of {spec.name} that can be tuned are "
            f"{', '.join(names)}."
        )
    for shape in shapes:
        if len(shape) != spec.rank + 2 or min(shape) < 1:
            axes = "height, width" if spec.rank == 2 else f"size of each of {spec.rank} axes"
            raise ArgumentError(
                f"shapes has {shape}; each is (batch, {axes}, heads), all at least 1."
            )


def present_schedule(
    spec: KernelSpec, target: Target, operation: str, space: SpaceVersion
) -> Schedule | None:
    """Return the existing schedule, which candidates must beat; None if its space is another one.

    Raises ScheduleError if a newer natc wrote it, NatcError if the workspace cannot be written.
    """
    place = workspace.schedule_path(spec, target, operation)
    if not writable(place.parent):
        raise NatcError(f"directory {place.parent} is not writable; set NATC_WORKSPACE.")
    make_directory(place.parent)
    schedule = load_schedule(spec, target, operation)
    if schedule is None or schedule.space == space:
        return schedule
    if schedule.space.name == space.name and schedule.space.version > space.version:
        path = workspace.find_schedule(spec, target, operation)
        raise ScheduleError(
            f"schedule {path} belongs to design space {space.name} "
            f"version {schedule.space.version}, which a newer natc wrote; this natc has version "
            f"{space.version}. Upgrade natc: install a newer checkout of it."
        )
    return None


def _learn(proposer: Any, session: Session) -> None:
    """Train a new cost model on the trials in the log."""
    candidates, scores = [], []
    with deferred():
        for trial in session.history.all()[-_EXAMPLES:]:
            # The log may hold decisions that the space lacks, recorded as failures.
            with contextlib.suppress(ScheduleError):
                candidates.append(proposer.candidate(trial.decisions))
                scores.append(session.score(trial))
        proposer.learn(candidates, scores)


def _search(
    proposer: Any, session: Session, is_over: Callable[[], bool], trials: int | None
) -> bool:
    """Propose, measure and learn until time or trials are used up, or no new candidate comes.

    Returns whether no new candidate came: the space is exhausted.
    """
    idle = 0
    while idle < _IDLE_ROUNDS and not is_over():
        with deferred():
            candidates = proposer.propose()
            decided = [_decided(candidate) for candidate in candidates]
        before = session.measured
        session.measure(decided, is_over, None if trials is None else trials - before)
        if session.measured > before:
            idle = 0
        elif not is_over():  # else new candidates may exist that were not measured in time
            idle += 1
        earlier = [session.history.get(decisions) for decisions in decided]
        # Candidates without a trial were cut off by the time limit.
        done = [(c, t) for c, t in zip(candidates, earlier, strict=True) if t is not None]
        with deferred():
            proposer.finish_round([c for c, _ in done], [session.score(t) for _, t in done])
    return idle >= _IDLE_ROUNDS
