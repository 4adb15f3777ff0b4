"""The history of a search: the trials in its log that this machine measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.records import Comparison, Environment, Record, SpaceVersion, Trial, read_log
from natc.targets import Target

Key = tuple[tuple[str, int], ...]


def key_of(decisions: Mapping[str, int]) -> Key:
    """Return decisions as something a dictionary can be indexed by."""
    return tuple(sorted(decisions.items()))


def score(trial: Trial, shapes: Sequence[str]) -> float | None:
    """Return the geometric mean of a trial's seconds over `shapes`; None for a failure."""
    if trial.seconds is None or not set(shapes) <= set(trial.seconds):
        return None
    return statistics.geometric_mean(trial.seconds[shape] for shape in shapes)


class History:
    """Trials by their decisions, earlier runs first, then this run.

    notes: sentences for the user about lines of the log that could not be used.
    next_trial: the number of the next trial in the log. comparisons: of this machine, in order.
    """

    def __init__(
        self,
        path: Path,
        spec: KernelSpec,
        space: SpaceVersion,
        shapes: Sequence[str],
        machine: Environment,
        operation: str = FORWARD,
    ) -> None:
        """Read a log; raises RecordError when the file cannot be read at all."""
        records, problems = read_log(path)
        self.notes = [str(problem) for problem in problems]
        trials = [record for record in records if isinstance(record, Trial)]
        # Not their count: if lines of the log are damaged, a number would be used twice.
        self.next_trial = max((trial.trial + 1 for trial in trials), default=0)
        same = ids_of(machine, records)
        self._trials: dict[Key, Trial] = {}
        ignored: Counter[str] = Counter()
        for trial in trials:
            if (trial.spec, trial.operation) != (spec.name, operation):
                ignored[f"measured {trial.spec} {trial.operation}"] += 1
            elif trial.space != space:
                old = f"{trial.space.name} version {trial.space.version}"
                ignored[
                    f"come from design space {old}, now {space.name} version {space.version}"
                ] += 1
            elif trial.environment not in same:
                ignored["were measured on another machine"] += 1
            elif trial.seconds is not None and not set(shapes) <= set(trial.seconds):
                ignored["measured other inputs"] += 1
            elif trial.seconds is not None and trial.ratio is None:
                ignored["were not measured beside the default"] += 1
            else:
                self.add(trial)
        self.comparisons = [
            record
            for record in records
            if isinstance(record, Comparison)
            and (record.spec, record.operation, record.space) == (spec.name, operation, space)
            and record.environment in same
            and set(shapes) == set(record.seconds)
        ]
        self.resumed = len(self._trials)
        self.notes += [
            f"{path}: {count} trials {why}; they are not used." for why, count in ignored.items()
        ]

    def add(self, trial: Trial) -> None:
        """Take in a trial; of two with the same decisions, the later one counts."""
        self._trials[key_of(trial.decisions)] = trial

    def get(self, decisions: Mapping[str, int]) -> Trial | None:
        """Return the trial with these decisions, or None."""
        return self._trials.get(key_of(decisions))

    def all(self) -> list[Trial]:
        """Return one trial for each candidate known, oldest first."""
        return list(self._trials.values())


def trials_of_other_kernels(
    spec: KernelSpec, target: Target, operation: str, space: SpaceVersion, machine: Environment
) -> list[Trial]:
    """Return the trials of all kernels except `spec` that a machine measured in a design space.

    They come from all logs. Failures of other machines are among them: what does not compile
    there does not compile here.
    """
    trials: list[Trial] = []
    for path in workspace.log_files():
        if path.parent.name == target.name:
            records, _ = read_log(path)
            same = ids_of(machine, records)
            trials += [
                record
                for record in records
                if isinstance(record, Trial)
                and (record.operation, record.space) == (operation, space)
                and record.spec != spec.name
                and (record.environment in same or record.error is not None)
            ]
    return trials


def ids_of(machine: Environment, records: Iterable[Record]) -> set[str]:
    """Return the ids of the environments in a log that are the same machine."""
    environments = (record for record in records if isinstance(record, Environment))
    return {each.id for each in environments if same_machine(each, machine)}


def same_machine(a: Environment, b: Environment) -> bool:
    """Return whether two environments have the same CPU, cores and GPU: their times compare."""
    return (a.cpu, a.cores, a.gpu) == (b.cpu, b.cores, b.gpu)
