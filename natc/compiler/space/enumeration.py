"""Lists all candidates of an operation: every decision with every value that it may take."""

from __future__ import annotations

import itertools

from tvm import IRModule
from tvm.s_tir import Schedule

from natc.compiler.space.decisions import Decisions, combinations
from natc.compiler.space.registry import DesignSpace, space_for
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.targets import Target


def all_decisions(spec: KernelSpec, target: Target, operation: str) -> list[dict[str, int]]:
    """Return the decisions of all candidates of an operation, the default ones first.

    Raises ScheduleError if there is none.
    """
    space = space_for(target, operation, spec)
    if space.candidates is not None:
        candidates = space.candidates(spec, target)
    else:
        candidates = _by_scheduling(space, spec, target, operation)
    if not candidates:
        raise ScheduleError(f"space {space.name} has no schedule for {operation} of {spec.name}.")
    return candidates


def _by_scheduling(
    space: DesignSpace, spec: KernelSpec, target: Target, operation: str
) -> list[dict[str, int]]:
    """Return all candidates of a space whose schedules sample decisions.

    Applies a schedule for each combination of choices of structure, to learn which decisions it
    samples.
    """
    function = space.definition(operation, spec, space.exponential)
    candidates: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    for choices in combinations(space.structure(spec, target)):
        answers = Decisions(choices, space.name)
        sch = Schedule(IRModule({"main": function}), debug_mask="none")
        try:
            space.apply(sch, spec, target, answers)
        except ScheduleError:
            continue  # some choices exclude each other
        names = answers.candidates
        for values in itertools.product(
            *([choices[name]] if name in choices else names[name] for name in names)
        ):
            decisions = dict(zip(names, values, strict=True))
            candidates.setdefault(tuple(sorted(decisions.items())), decisions)
    return list(candidates.values())
