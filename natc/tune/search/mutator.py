"""Mutates a candidate: changes one decision and schedules the kernel again."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.schedule import Trace

from natc.compiler.space import read_decisions

# decisions -> the trace of a schedule that follows them, None where they exclude each other
Scheduler = Callable[[Mapping[str, int]], Trace | None]


@derived_object
class MutateDecision(PyMutator):
    """Changes one decision of a trace, a choice of structure or a sampled number.

    MetaSchedule's own mutators change an argument of one instruction. A choice of structure
    changes which instructions follow, so the whole trace is recomputed from its decisions.
    """

    def __init__(
        self, candidates: Mapping[str, list[int]], schedule: Scheduler, rng: random.Random
    ) -> None:
        """candidates: decision -> values it may take; rng: the search's source of chance."""
        super().__init__()
        self.candidates, self.schedule, self.rng = candidates, schedule, rng

    def _initialize_with_tune_context(self, context: object) -> None:
        pass

    def apply(self, trace: Trace, _: object) -> Trace | None:
        """Return the trace with one decision changed, or None where nothing can change."""
        decisions = read_decisions(trace)
        free = [name for name in decisions if len(self.candidates[name]) > 1]
        if not free:
            return None
        name = self.rng.choice(free)
        alternatives = [value for value in self.candidates[name] if value != decisions[name]]
        return self.schedule({**decisions, name: self.rng.choice(alternatives)})

    def clone(self) -> MutateDecision:
        """Return a mutator for another thread."""
        return MutateDecision(self.candidates, self.schedule, self.rng)
