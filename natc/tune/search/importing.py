"""Imports a measured round: its trials into the tuning log, its winner into a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from natc.compiler.build.chosen import schedule_in_use
from natc.compiler.space import space_for
from natc.errors import TuneError
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.records import (
    Comparison,
    Environment,
    Record,
    SpaceVersion,
    Trial,
    append,
    read_log,
)
from natc.targets import Target
from natc.tune.history import Key, key_of, same_machine, score
from natc.tune.measure import rounds
from natc.tune.measure.confirm import NO_CANDIDATE, Verdict, judge
from natc.tune.measure.race import Decisions
from natc.tune.measure.rounds import Imported, Round
from natc.tune.measure.workload import keys_of
from natc.tune.search.saving import gain_of, save_winner


def import_round(directory: Path) -> Imported:
    """Append a round's results to the tuning log and write the winner's schedule, if one won.

    The verdict is the verdict of a search: the winner is faster than the default and the schedule
    in use, beyond the noise. Importing twice adds no record twice. Raises TuneError if the round
    was not measured, if it belongs to another version of its design space, or if its default
    failed.
    """
    round_ = rounds.read(directory)
    spec, target = KernelSpec.parse(round_.spec), Target.parse(round_.target)
    space = space_for(target, round_.operation, spec)
    if round_.space != SpaceVersion(space.name, space.version):
        raise TuneError(
            f"{directory / rounds.NAME} belongs to design space {round_.space.name} version "
            f"{round_.space.version}, and this natc has {space.name} version {space.version}: its "
            "decisions mean other kernels. Export it again: natc tune --export."
        )
    measured = rounds.measured(directory)
    machines = {r.id: r for r in measured.records if isinstance(r, Environment)}
    kernel = (round_.spec, round_.target, round_.operation, round_.space)
    trials = [
        trial
        for trial in measured.trials
        if trial.environment in machines
        and (trial.spec, trial.target, trial.operation, trial.space) == kernel
    ]
    if not trials:
        raise TuneError(f"{directory} was not measured yet: natc measure {directory}")
    keys = keys_of(round_.shapes, spec)
    machine = machines[trials[-1].environment]
    same = {each.id for each in machines.values() if same_machine(each, machine)}
    latest = {key_of(t.decisions): t for t in trials if t.environment in same}
    default = round_.candidates[0].decisions
    untuned = latest.get(key_of(default))
    base = None if untuned is None else score(untuned, keys)
    if untuned is None or base is None:
        reason = "was not measured" if untuned is None else f"failed: {untuned.error}"
        raise TuneError(
            f"the default of {directory} {reason}, so there is nothing to compare with."
        )
    log = workspace.log_path(spec, target, round_.operation)
    added = _add(log, round_, measured.records)

    comparisons = [each for each in measured.comparisons if each.environment in same]
    problem = _unmeasured(directory, round_, latest, comparisons)
    verdict = NO_CANDIDATE
    if not problem and comparisons:
        schedule = schedule_in_use(spec, target, round_.operation)
        verdict = _verdict(default, comparisons, None if schedule is None else schedule.decisions)
    path = None
    if verdict.winner is not None:
        counted = sum(isinstance(record, Trial) for record in read_log(log)[0])
        path = save_winner(verdict.winner, machine, counted)
    return Imported(
        name=round_.name,
        schedule_path=path,
        log_path=log,
        gain=gain_of(verdict.winner) if verdict.winner else None,
        untuned=base,
        trials=added,
        message=verdict.message,
        problem=problem,
    )


def _verdict(
    default: Decisions, comparisons: Sequence[Comparison], in_use: Decisions | None
) -> Verdict:
    """Return the verdict of a round; in_use: decisions of the schedule that a build takes now."""
    verdict = judge(comparisons, default, None)
    rival = {**default, **(in_use or {})}
    if verdict.winner is None or rival == default:
        return verdict
    if key_of(verdict.winner.decisions) == key_of(rival):
        return Verdict("not faster", None, "the best candidate is the schedule in use")
    if not any(key_of(each.base) == key_of(rival) for each in comparisons):
        message = "the schedule in use was not compared with the candidates: export them again"
        return Verdict("undecided", None, message)
    return judge(comparisons, default, rival)


def _unmeasured(
    directory: Path,
    round_: Round,
    latest: Mapping[Key, Trial],
    comparisons: Sequence[Comparison],
) -> str:
    """Return why there is no verdict on the candidates, or "" if there can be one."""
    candidates = [key_of(candidate.decisions) for candidate in round_.candidates]
    if not all(key in latest for key in candidates):
        return f"not every candidate was measured yet; go on with: natc measure {directory}"
    # The default and the schedule in use do not count: they are there to be beaten.
    challengers = [latest[key] for key in candidates[1 + round_.present :]]
    if challengers and all(trial.error for trial in challengers):
        number = len(challengers)
        return f"{number} of {number} candidates failed ({challengers[-1].error})"
    faster = [trial for trial in challengers if trial.ratio is not None and trial.ratio < 1]
    if faster and not comparisons:
        return f"the best candidates were not compared yet; go on with: natc measure {directory}"
    return ""


def _add(log: Path, round_: Round, records: list[Record]) -> int:
    """Append the trials that a log lacks, dropped candidates included; return their number."""
    logged = read_log(log)[0]
    machines = {record.id for record in logged if isinstance(record, Environment)}
    old = [record for record in logged if isinstance(record, Trial)]
    seen = {_identity(each) for each in logged if isinstance(each, Trial | Comparison)}
    number = max((trial.trial + 1 for trial in old), default=0)
    dropped = [
        Trial(
            spec=round_.spec,
            target=round_.target,
            operation=round_.operation,
            space=round_.space,
            decisions=candidate.decisions,
            seconds=None,
            error=candidate.error,
            environment=round_.exported_on.id,
            timestamp=round_.exported_on.timestamp,
            trial=0,
        )
        for candidate in round_.dropped
    ]
    added = 0
    for record in [round_.exported_on, *dropped, *records]:
        if isinstance(record, Environment):
            if record.id not in machines:
                machines.add(record.id)
                append(log, record)
        elif isinstance(record, Trial | Comparison) and _identity(record) not in seen:
            seen.add(_identity(record))
            if isinstance(record, Trial):
                record = msgspec.structs.replace(record, trial=number)
                number += 1
                added += 1
            append(log, record)
    return added


def _identity(record: Trial | Comparison) -> tuple[object, ...]:
    pairs = record.pairs if isinstance(record, Comparison) else record.samples
    return record.environment, record.timestamp, pairs, key_of(record.decisions)
