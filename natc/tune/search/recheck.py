"""Measures saved schedules again, and removes schedules that do not win."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from natc.compiler.space import space_for
from natc.errors import ScheduleError
from natc.host import environment
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.records import SpaceVersion, append
from natc.store.schedules import Gain, Listed, Schedule, list_schedules
from natc.targets import Target
from natc.tune.events import Event, Note
from natc.tune.history import History
from natc.tune.measure.busy import load_note
from natc.tune.measure.confirm import compare, has_own_code, judge
from natc.tune.measure.race import Race, TunedKernel
from natc.tune.measure.workload import Shape
from natc.tune.search.engine import rival_of
from natc.tune.search.measurer import LocalMeasurer
from natc.tune.search.model import Model
from natc.tune.search.saving import gain_of


@dataclass(frozen=True)
class Rechecked:
    """What became of a saved schedule.

    outcome: `faster` if it wins; else `removed`, `shipped` (it does not win, but comes with natc
    and stays), `undecided` if the noise is too large, or `unusable` if it could not be measured.
    message: the outcome in words. gain: how much faster it is, if it wins.
    """

    path: Path
    name: str
    outcome: str
    message: str
    gain: Gain | None = None


def schedules_to_recheck(
    kernels: Collection[tuple[str, str]] | None, target: Target
) -> list[Listed]:
    """Return the schedules of the workspace and of natc for a target.

    kernels: (spec, operation) of the schedules wanted; None for all. A file that cannot be read is
    among them if all are wanted.
    """
    return [
        item
        for item in list_schedules()
        if item.path.parent.name == target.name
        and (
            kernels is None
            or (item.schedule and (item.schedule.spec, item.schedule.operation) in kernels)
        )
    ]


def recheck(
    item: Listed, minutes: float | None, on_event: Callable[[Event], None] | None = None
) -> Rechecked:
    """Compare a saved schedule with the default, and with the schedule that it hides.

    If it does not win, its file is removed from the workspace; files that come with natc stay.
    minutes: time for the comparison. Raises NatcError if the default fails.
    """
    schedule, tell = item.schedule, on_event or (lambda event: None)
    if schedule is None:
        return Rechecked(item.path, item.path.stem, "unusable", item.problem or "")
    try:
        outcome, message, gain = _compared(item.path, schedule, minutes, tell)
    except ScheduleError as error:
        return Rechecked(item.path, schedule.name, "unusable", str(error))
    if outcome == "not faster":
        outcome = "shipped"
        if item.path.is_relative_to(workspace.workspace()):
            item.path.unlink(missing_ok=True)
            outcome = "removed"
    return Rechecked(item.path, schedule.name, outcome, message, gain)


def is_default(schedule: Schedule) -> bool:
    """Return whether a schedule's decisions are the defaults of this natc's design space."""
    spec, target = KernelSpec.parse(schedule.spec), Target.parse(schedule.target)
    space = space_for(target, schedule.operation, spec)
    if schedule.space != SpaceVersion(space.name, space.version):
        return False
    proposer = Model(spec, target, schedule.operation, batch=1, seed=0)
    try:
        return proposer.candidate(schedule.decisions) == proposer.untuned
    except ScheduleError:
        return False


def _compared(
    path: Path, schedule: Schedule, minutes: float | None, tell: Callable[[Event], None]
) -> tuple[str, str, Gain | None]:
    """Return the outcome, a sentence and the gain of a schedule; see `judge`."""
    spec, target = KernelSpec.parse(schedule.spec), Target.parse(schedule.target)
    operation = schedule.operation
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    if schedule.space != space:
        raise ScheduleError(
            f"it was made in design space {schedule.space.name} version {schedule.space.version}, "
            f"and this natc has {space.name} version {space.version}: builds do not use it."
        )
    proposer = Model(spec, target, operation, batch=1, seed=0)
    decisions = proposer.candidate(schedule.decisions)
    if decisions == proposer.untuned:
        return "not faster", "its decisions are the default", None
    rival = rival_of(spec, target, operation, proposer, tell, but=path)
    if rival == decisions:
        return "not faster", "the schedule that it hides has the same decisions", None
    if schedule.measured is None:
        raise ScheduleError(f"it was {schedule.evidence}, not measured: search with natc tune.")
    shapes = _shapes(schedule.measured.seconds, spec)
    for note in load_note():
        tell(Note(note))
    machine = environment.collect()
    keys = list(schedule.measured.seconds)
    problem = TunedKernel(spec.name, target.name, operation, space, keys)
    log = workspace.log_path(spec, target, operation)
    history = History(log, spec, space, keys, machine, operation)
    append(log, machine)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    with LocalMeasurer(spec, target, shapes, operation) as measurer:
        race = Race(
            problem,
            proposer.untuned,
            measurer,
            history,
            machine,
            partial(append, log),
            tell,
            time.monotonic,
        )
        if not has_own_code(race, decisions, rival):
            return "not faster", "its code is the default's, or the hidden schedule's", None
        comparisons = compare(race, [decisions], rival, until)
        if not comparisons:
            trial = history.get(decisions)
            if trial is not None and trial.error is not None:
                return "not faster", f"it fails: {trial.error}", None
    verdict = judge(comparisons, proposer.untuned, rival, "it", "the schedule that it hides")
    gain = gain_of(verdict.winner) if verdict.winner else None
    return verdict.outcome, verdict.message, gain


def _shapes(seconds: Mapping[str, float], spec: KernelSpec) -> list[Shape]:
    """Return the shapes that a schedule was measured with."""
    try:
        shapes = [tuple(map(int, key.split("x"))) for key in seconds]
    except ValueError:
        shapes = [()]
    if any(len(shape) != spec.rank + 3 or shape[-1] != spec.head_dim for shape in shapes):
        raise ScheduleError(f"its shapes {', '.join(seconds)} are not shapes of {spec.name}.")
    return [shape[:-1] for shape in shapes]
