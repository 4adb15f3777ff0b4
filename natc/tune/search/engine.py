"""The search for one kernel on one target, from the first candidate to the schedule file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from natc.compiler.build.chosen import schedule_in_use
from natc.compiler.space import space_for
from natc.errors import ArgumentError, NatcError, ScheduleError, SpecError
from natc.host import environment
from natc.host.detect import require_runs_here
from natc.host.toolchain import check_compilers
from natc.operations import FORWARD, operations_of, tuned_as
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.files import make_directory, writable
from natc.store.nearest import WORTHWHILE
from natc.store.records import SearchEnd, SpaceVersion, append
from natc.store.schedules import load_schedule
from natc.targets import Target
from natc.tune.events import Event, Note, SearchFinished, Started
from natc.tune.history import History, score, trials_of_other_kernels
from natc.tune.measure.busy import load_note
from natc.tune.measure.confirm import NO_CANDIDATE, Verdict, conclude, seconds_to_confirm
from natc.tune.measure.measurer import MakeMeasurer, OwnedMeasurer
from natc.tune.measure.race import FINALISTS, Decisions, Race, TunedKernel
from natc.tune.measure.workload import Shape, default_shapes, keys_of
from natc.tune.search.interrupts import deferred
from natc.tune.search.measurer import LocalMeasurer
from natc.tune.search.model import Model
from natc.tune.search.saving import gain_of, save_winner

_BATCH = 8  # candidates that the model proposes at once
# A search that gives up measures so many candidates first: in replays the best is among them.
_FIRST_LOOKS = 16
# The share of a search's time that is kept for the final comparison, at most.
_CONFIRMED = 0.3


def tune(
    spec: KernelSpec,
    target: Target,
    *,
    operation: str = FORWARD,
    shapes: Sequence[Shape] | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    gives_up: bool = False,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    measurer: MakeMeasurer | None = None,
) -> SearchFinished:
    """Search for a faster schedule of a kernel's operation; write it if there is one.

    operation: `forward`, whose schedule serves all forward operations, or the name of another.
    shapes: inputs (batch, size of each axis, heads), by default NAT's four levels; the search
    minimizes the geometric mean of their times. trials, minutes: when to stop, whichever comes
    first; with neither, when every candidate was tried. gives_up: also stop as soon as neither the
    measured candidates nor the model promise a gain. seed: makes the proposals repeatable.
    on_event: called with each event, from Started to SearchFinished. measurer: returns what builds
    and times candidates; by default this machine does.

    A schedule is written only if it is faster, beyond the noise, than the default and than the
    schedule that a build takes now. Every trial is in the log before the next begins, and a
    candidate in the log is not measured again. Ctrl-C ends the search, and nothing is written.
    Raises SpecError for an operation that the kernel lacks, ArgumentError for an impossible shape
    or limit, TargetError if this machine cannot run the target's code, CompilerNotFound, NatcError
    if the workspace cannot be written, ScheduleError if the existing schedule is damaged or was
    written by a newer natc, and TuneError if the default itself fails.
    """
    tell = on_event or (lambda event: None)
    start = time.monotonic()
    chosen = [tuple(shape) for shape in shapes or default_shapes(spec, target)]
    _check(spec, target, operation, chosen, trials, minutes)
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    problem = TunedKernel(spec.name, target.name, operation, space, keys_of(chosen, spec))
    log = workspace.log_path(spec, target, operation)
    make = measurer or _on_this_machine
    with make(spec, target, chosen, operation, seed, tell) as machines:
        check_workspace(spec, target, operation, space)
        machine = machines.machine
        history = History(log, spec, space, problem.shapes, machine, operation)
        append(log, machine)
        for note in history.notes:
            tell(Note(note))
        with deferred():
            limited = trials is not None or minutes is not None
            proposer = Model(
                spec, target, operation, batch=_BATCH, seed=seed, thorough=not limited
            )
            proposer.learn(trials_of_other_kernels(spec, target, operation, space, machine))
        rival = rival_of(spec, target, operation, proposer, tell)
        race = Race(
            problem,
            proposer.untuned,
            machines,
            history,
            machine,
            partial(append, log),
            tell,
            time.monotonic,
        )
        baseline = score(race.measure_default(), problem.shapes) or 0.0
        tell(
            Started(
                spec=spec.name,
                target=target.name,
                shapes=tuple(problem.shapes),
                baseline=baseline,
                best=race.best_speedup,
                resumed_trials=history.resumed,
                planned=trials,
                minutes=minutes,
            )
        )
        until = None if minutes is None else start + 60 * minutes
        verdict = _run(race, proposer, rival, minutes, until, trials, gives_up=gives_up)
    path = None
    if verdict.winner is not None:
        path = save_winner(verdict.winner, machine, history.next_trial)
    outcome = "saved" if path else verdict.outcome
    seconds = time.monotonic() - start
    append(
        log,
        SearchEnd(
            spec=spec.name,
            target=target.name,
            operation=operation,
            space=space,
            shapes=problem.shapes,
            outcome=outcome,
            seconds=seconds,
            limit=None if minutes is None or trials is not None else 60 * minutes,
            used_up=race.used_up,
            environment=machine.id,
            timestamp=environment.now(),
        ),
    )
    finished = SearchFinished(
        outcome=outcome,
        message=verdict.message,
        schedule_path=path,
        log_path=log,
        gain=gain_of(verdict.winner) if verdict.winner else None,
        baseline=baseline,
        trials=race.measured,
        failures=race.failures,
        seconds=seconds,
    )
    tell(finished)
    return finished


def _run(
    race: Race,
    proposer: Model,
    rival: Decisions | None,
    minutes: float | None,
    until: float | None,
    trials: int | None,
    *,
    gives_up: bool,
) -> Verdict:
    """Search until `until`, compare the best candidates with the default and the rival, judge."""

    def seconds_at_the_end() -> float:
        share = 60 * _CONFIRMED * (minutes or 0.0)
        return min(share, seconds_to_confirm(race, FINALISTS))

    def is_hopeless() -> bool:
        expected = proposer.best_expected
        return (
            race.measured >= _FIRST_LOOKS
            and race.best_speedup < WORTHWHILE
            and expected is not None
            and 1 / expected < WORTHWHILE
        )

    def is_over() -> bool:
        if gives_up and is_hopeless():
            return True
        return until is not None and time.monotonic() >= until - seconds_at_the_end()

    try:
        proposer.learn(race.history.all())
        used_up = race.search(proposer, is_over, trials)
        tried = [trial for trial in race.history.all() if trial.decisions != race.default]
        if not tried:
            if used_up:
                return NO_CANDIDATE
            return Verdict("unmeasured", None, "no candidate was measured in that time")
        if all(trial.error for trial in tried):
            count = len(tried)
            return Verdict("failed", None, f"{count} of {count} candidates failed")
        if until is not None:
            # Builds that took longer than expected must not cost the comparison.
            until = max(until, time.monotonic() + seconds_at_the_end())
        return conclude(race, rival, until)
    except KeyboardInterrupt:
        return Verdict("interrupted", None, "stopped before the best candidates were compared")


def rival_of(
    spec: KernelSpec,
    target: Target,
    operation: str,
    proposer: Model,
    tell: Callable[[Event], None],
    but: Path | None = None,
) -> dict[str, int] | None:
    """Return the decisions of the schedule that a build takes now, unless they are the default.

    but: a schedule file to pass over.
    """
    schedule = schedule_in_use(spec, target, operation, but=but)
    if schedule is None:
        return None
    try:
        decisions = proposer.candidate(schedule.decisions)
    except ScheduleError as error:
        tell(Note(f"the schedule in use, of {schedule.created}, does not fit: {error}"))
        return None
    return None if decisions == proposer.untuned else decisions


def _on_this_machine(
    spec: KernelSpec,
    target: Target,
    shapes: Sequence[Shape],
    operation: str,
    seed: int,
    tell: Callable[[Event], None],
) -> OwnedMeasurer:
    """Return this machine's measurer; raises TargetError or CompilerNotFound if it is unfit."""
    require_runs_here(target, "tune on a machine that it runs on")
    check_compilers(target)
    for note in load_note():
        tell(Note(note))
    return LocalMeasurer(spec, target, shapes, operation, seed)


def _check(
    spec: KernelSpec,
    target: Target,
    operation: str,
    shapes: Sequence[Shape],
    trials: int | None,
    minutes: float | None,
) -> None:
    """Raise now for arguments that would fail only after measurements were made."""
    check_problem(spec, target, operation, shapes)
    for name, value in (("trials", trials), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise ArgumentError(f"{name} is {value}; it must be above 0, or None for no limit.")


def check_problem(
    spec: KernelSpec, target: Target, operation: str, shapes: Sequence[Shape]
) -> None:
    """Raise SpecError if the kernel lacks the operation, ArgumentError for a bad shape."""
    names = tuple(dict.fromkeys(map(tuned_as, operations_of(spec, kind=target.kind))))
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


def check_workspace(spec: KernelSpec, target: Target, operation: str, space: SpaceVersion) -> None:
    """Raise unless a schedule of this space may be written to the workspace.

    Raises ScheduleError if a newer natc wrote the existing schedule, or if it is damaged, and
    NatcError if the workspace cannot be written.
    """
    place = workspace.schedule_path(spec, target, operation)
    if not writable(place.parent):
        raise NatcError(f"directory {place.parent} is not writable; set NATC_WORKSPACE.")
    make_directory(place.parent)
    schedule = load_schedule(spec, target, operation)
    if schedule is None or schedule.space.name != space.name:
        return
    if schedule.space.version > space.version:
        path = workspace.find_schedule(spec, target, operation)
        raise ScheduleError(
            f"schedule {path} belongs to design space {space.name} "
            f"version {schedule.space.version}, which a newer natc wrote; this natc has version "
            f"{space.version}. Upgrade natc: install a newer checkout of it."
        )
