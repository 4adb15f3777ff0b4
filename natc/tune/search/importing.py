"""Imports a measured round: its trials into the tuning log, its winner into a schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from natc.compiler.space import space_for
from natc.errors import TuneError
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.records import Environment, Record, SpaceVersion, Trial, append, read_log
from natc.store.schedules import load_schedule
from natc.targets import Target
from natc.tune.history import Key, key_of, same_machine
from natc.tune.measure import rounds
from natc.tune.measure.measuring import confirmed, score
from natc.tune.measure.rounds import Imported, Round
from natc.tune.measure.workload import keys_of
from natc.tune.search.session import save_winner


def import_round(directory: Path) -> Imported:
    """Append a round's trials to the tuning log and write the winner's schedule.

    Importing twice adds no trial twice. If no candidate has a time, the trials are still appended
    and the schedule does not change. Raises TuneError if the round was not measured, if it belongs
    to another version of its design space, or if its untuned kernel failed.
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
    latest = {
        key_of(trial.decisions): trial
        for trial in trials
        if same_machine(machines[trial.environment], machine)
    }
    untuned = latest.get(key_of(round_.candidates[0].decisions))
    base = None if untuned is None else score(untuned, keys)
    if untuned is None or base is None:
        reason = "was not measured" if untuned is None else f"failed: {untuned.error}"
        raise TuneError(
            f"the untuned kernel of {directory} {reason}, so there is nothing to compare with."
        )
    log = workspace.log_path(spec, target, round_.operation)
    added = _add(log, round_, measured.records)

    ranked = sorted(
        (not confirmed(trial), seconds, key)
        for key, trial in latest.items()
        if (seconds := score(trial, keys)) is not None
    )
    unconfirmed, best, key = ranked[0]
    problem = _unmeasured(directory, round_, latest, {key for _, _, key in ranked})
    kept = "" if problem else _better(spec, target, round_, keys, best, machine, latest)
    path: Path | None
    if problem or kept:
        path = workspace.find_schedule(spec, target, round_.operation)
    else:
        counted = sum(isinstance(record, Trial) for record in read_log(log)[0])
        path = save_winner(latest[key], untuned, keys, machine, counted)
    replaced = not (problem or kept)
    return Imported(
        *(round_.name, path, log, best, base, added, replaced, kept, problem, not unconfirmed)
    )


def _unmeasured(
    directory: Path, round_: Round, latest: Mapping[Key, Trial], scored: Collection[Key]
) -> str:
    """Return why no candidate has a time, or "" if one has."""
    candidates = [key_of(candidate.decisions) for candidate in round_.candidates]
    # The untuned kernel and the existing schedule do not count: they are there to be beaten.
    challengers = candidates[1 + round_.present :]
    if any(key in scored for key in challengers):
        return ""
    if not all(key in latest for key in candidates):
        return f"no candidate was measured yet; go on with: natc measure {directory}"
    if not challengers:
        return ""
    number = len(challengers)
    return f"{number} of {number} candidates failed ({latest[challengers[-1]].error})"


def _better(
    spec: KernelSpec,
    target: Target,
    round_: Round,
    keys: list[str],
    best: float,
    machine: Environment,
    latest: Mapping[Key, Trial],
) -> str:
    """Return why the existing schedule stays, or "" if the round's winner replaces it."""
    there = load_schedule(spec, target, round_.operation)
    if there is None or there.space != round_.space:
        return ""
    gpu = machine.gpu.name if machine.gpu else None
    same = (there.environment.gpu, there.environment.cpu) == (gpu, machine.cpu)
    if key_of(there.decisions) in latest or set(there.measured.seconds) != set(keys) or not same:
        return ""
    if there.measured.score > best:
        return ""
    return f"the schedule of {there.created} took {there.measured.score:.3g} s"


def _add(log: Path, round_: Round, records: list[Record]) -> int:
    """Append the trials that a log lacks, dropped candidates included; return their number."""
    logged = read_log(log)[0]
    machines = {record.id for record in logged if isinstance(record, Environment)}
    old = [record for record in logged if isinstance(record, Trial)]
    seen = {_identity(trial) for trial in old}
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
        elif _identity(record) not in seen:
            seen.add(_identity(record))
            append(log, msgspec.structs.replace(record, trial=number))
            number += 1
            added += 1
    return added


def _identity(trial: Trial) -> tuple[object, ...]:
    return trial.environment, trial.timestamp, trial.samples, key_of(trial.decisions)
