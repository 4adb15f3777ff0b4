"""Decisions of a design space, which the same code samples in a search and fixes in a build.

A space has two kinds of freedom. A choice of structure changes which scheduling steps follow, so
a search enumerates it: one design space for each combination. A sampled number only changes an
argument of a step, so it is an instruction of the trace that MetaSchedule samples and mutates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, SBlockRV
from tvm.s_tir.schedule.trace import Trace

from natc.errors import ScheduleError

# Decisions are annotated on the block `output` under this prefix, to be read back from any trace.
_PREFIX = "natc."
Candidates = Mapping[str, Sequence[int]]


class Decisions:
    """Answers a space's questions from `fixed`, and annotates each answer in the schedule."""

    def __init__(self, fixed: Mapping[str, int], space: str, *, default_rest: bool = True) -> None:
        """Answer questions that `fixed` lacks by the first candidate, or at random in a search."""
        self._fixed = dict(fixed)
        self._space = space
        self._default_rest = default_rest
        self._answers: dict[str, int | ExprRV] = {}
        self.candidates: dict[str, list[int]] = {}  # the candidates of every question asked

    @property
    def is_untuned(self) -> bool:
        """Whether no decision is fixed."""
        return not self._fixed

    def choose(self, name: str, candidates: Sequence[int]) -> int:
        """Return a choice of structure: fixed, or the first of `candidates`.

        Raises ScheduleError when the fixed value is not a candidate.
        """
        value = self._checked(name, candidates)
        self._answers[name] = value
        return value

    def choose_all(self, structure: Candidates) -> dict[str, int]:
        """Return every choice of structure of a space, by name; raises as `choose`."""
        return {name: self.choose(name, candidates) for name, candidates in structure.items()}

    def sample(self, sch: Schedule, name: str, candidates: Sequence[int]) -> int | ExprRV:
        """Return a candidate, sampled by an instruction of sch's trace; raises as `choose`."""
        value = self._checked(name, candidates)
        is_given = name in self._fixed or self._default_rest
        decision = list(candidates).index(value) if is_given else None
        chances = [1.0 / len(candidates)] * len(candidates)
        number = sch.sample_categorical(list(candidates), chances, decision=decision)
        self._answers[name] = number
        return number

    def annotate(self, sch: Schedule, block: SBlockRV) -> None:
        """Annotate the answers on `block`; raises as `check_names`."""
        self.check_names()
        for name, value in self._answers.items():
            sch.annotate(block, _PREFIX + name, value)

    def check_names(self) -> None:
        """Raise ScheduleError if `fixed` has a name that no question had."""
        unknown = sorted(set(self._fixed) - set(self._answers))
        if unknown:
            raise ScheduleError(
                f"decision {', '.join(unknown)} is not of space {self._space}, which has "
                f"{', '.join(self._answers)}."
            )

    def _checked(self, name: str, candidates: Sequence[int]) -> int:
        self.candidates[name] = list(candidates)
        value = self._fixed.get(name, candidates[0])
        if value not in candidates:
            raise ScheduleError(
                f"decision {name} is {value}; space {self._space} allows "
                f"{', '.join(map(str, candidates))}."
            )
        return value


class Untuned(Decisions):
    """Decisions that take every first candidate, and leave none in the schedule."""

    def __init__(self) -> None:
        super().__init__({}, "")

    def sample(self, sch: Schedule, name: str, candidates: Sequence[int]) -> int:
        """Return the first candidate."""
        return candidates[0]

    def annotate(self, sch: Schedule, block: SBlockRV) -> None:
        """Do nothing."""


def combinations(structure: Candidates) -> Iterator[dict[str, int]]:
    """Yield every combination of choices of structure, the default one first."""
    for values in itertools.product(*structure.values()):
        yield dict(zip(structure, values))


def read_decisions(trace: Trace) -> dict[str, int]:
    """Return the answers that `Decisions.annotate` wrote into a trace."""
    sampled: dict[Any, int] = {}
    decisions: dict[str, int] = {}
    for instruction in trace.insts:
        kind = instruction.kind.name
        if kind == "SampleCategorical":
            candidates = [int(c) for c in instruction.attrs[0]]
            sampled[instruction.outputs[0]] = candidates[int(trace.decisions[instruction])]
        elif kind == "Annotate" and str(instruction.attrs[0]).startswith(_PREFIX):
            value = instruction.inputs[1]
            name = str(instruction.attrs[0]).removeprefix(_PREFIX)
            decisions[name] = sampled[value] if value in sampled else int(value)
    return decisions
