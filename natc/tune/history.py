"""What a search knows already: the trials of its log that this machine measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from natc.records import Environment, Space, Trial, read_log, trials_of
from natc.spec import KernelSpec

Key = tuple[tuple[str, int], ...]


def key_of(decisions: Mapping[str, int]) -> Key:
    """Return decisions as something a dictionary can be indexed by."""
    return tuple(sorted(decisions.items()))


class History:
    """Trials by their decisions: those of earlier runs, then those of this one.

    notes: lines of the log that could not be used, as sentences for the user.
    trials: how many trials the log holds, of any machine.
    """

    def __init__(
        self,
        path: Path,
        spec: KernelSpec,
        space: Space,
        shapes: Sequence[str],
        machine: Environment,
    ) -> None:
        """Read a log; raises RecordError when the file cannot be read at all."""
        records, problems = read_log(path)
        self.notes = [str(problem) for problem in problems]
        earlier = trials_of(records, spec, space)
        self.trials = sum(isinstance(record, Trial) for record in records)
        same = {
            record.id
            for record in records
            if isinstance(record, Environment) and _same_machine(record, machine)
        }
        self._found: dict[Key, Trial] = {}
        foreign = 0
        for trial in earlier:
            if trial.environment not in same:
                foreign += 1
            elif trial.error is not None or set(shapes) <= set(trial.seconds or ()):
                self.add(trial)
        self.resumed = len(self._found)
        if foreign:
            self.notes.append(f"{foreign} trials of {path} were measured on another machine.")

    def add(self, trial: Trial) -> None:
        """Take in a trial; of two with the same decisions, the later one counts."""
        self._found[key_of(trial.decisions)] = trial

    def get(self, decisions: Mapping[str, int]) -> Trial | None:
        """Return the trial with these decisions, or None."""
        return self._found.get(key_of(decisions))

    def all(self) -> list[Trial]:
        """Return one trial for each candidate known, oldest first."""
        return list(self._found.values())


def _same_machine(one: Environment, other: Environment) -> bool:
    return (one.cpu, one.cores, one.gpu) == (other.cpu, other.cores, other.gpu)
