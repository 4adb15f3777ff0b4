"""Decisions: a schedule holds an answer to every question of its space, to be read back."""

from __future__ import annotations

import itertools

import pytest

from natc.compiler.build.lower import scheduled
from natc.compiler.space import combinations, read_decisions, space_for
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.targets import Target
from natc.tune.search.proposer import Proposer, decisions_of

SPEC = KernelSpec.parse("na2d_k3_d8_float32")
# Of the space for CPUs that takes a row of the window at once: tiles do not cap logits.
BLOCKED = KernelSpec.parse("na2d_k3_d16_float32_rpb_softcap")
EACH_SPACE = [(target, SPEC) for target in ("llvm-x86-64-v3", "cuda-sm_90")]
EACH_SPACE.append(("llvm-x86-64-v4", BLOCKED))
TARGETS = ["llvm-x86-64-v3", "cuda-sm_90"]


def make_proposer(target: str, spec: KernelSpec = SPEC) -> Proposer:
    return Proposer(spec, Target.parse(target), (1, 8, 8, 1), batch=6, seed=0)


def every_combination(proposer: Proposer) -> list[dict[str, int]]:
    names = list(proposer.candidates)
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*proposer.candidates.values())
    ]


@pytest.mark.parametrize("target, spec", EACH_SPACE, ids=str)
def test_every_combination_is_read_back_from_its_schedule(target: str, spec: KernelSpec) -> None:
    proposer = make_proposer(target, spec)
    refused = 0
    for decisions in every_combination(proposer):
        try:
            candidate = proposer.candidate(decisions)
        except ScheduleError:
            refused += 1
            continue
        assert decisions_of(candidate) == decisions
        # As the database keeps it, without the schedule that it came from.
        assert read_decisions(candidate.sch.trace.simplified(True)) == decisions
    # One lane has no sum over lanes: the only two decisions that exclude each other.
    excluded = [
        d for d in every_combination(proposer) if d.get("lanes") == 1 and d.get("lane_sum") == 1
    ]
    assert refused == len(excluded)
    assert bool(excluded) == (target == "llvm-x86-64-v3")


@pytest.mark.parametrize("target, spec", EACH_SPACE, ids=str)
def test_a_trace_replayed_makes_the_same_kernel(target: str, spec: KernelSpec) -> None:
    import tvm
    from tvm.s_tir import Schedule

    proposer = make_proposer(target, spec)
    for decisions in every_combination(proposer)[:: 7 if target.startswith("llvm") else 11]:
        try:
            candidate = proposer.candidate(decisions)
        except ScheduleError:
            continue
        again = Schedule(proposer._module, debug_mask="none")
        candidate.sch.trace.apply_to_schedule(again, remove_postproc=False)
        tvm.ir.assert_structural_equal(again.mod, candidate.sch.mod)


@pytest.mark.parametrize("target", TARGETS)
def test_missing_decisions_are_the_untuned_schedules(target: str) -> None:
    proposer = make_proposer(target)
    defaults = {name: values[0] for name, values in proposer.candidates.items()}
    assert decisions_of(proposer.candidate({})) == defaults
    structure = space_for(Target.parse(target)).structure(SPEC, Target.parse(target))
    first = next(combinations(structure))
    assert first == {name: defaults[name] for name in structure}


def test_a_build_and_a_trial_make_the_same_decisions() -> None:
    import tvm

    decisions = {"lanes": 4, "lane_sum": 1, "unroll_taps": 3}
    target = Target.parse("llvm-x86-64-v3")
    built = scheduled(SPEC, target, decisions)
    two = scheduled(SPEC, target, decisions_of(make_proposer(target.name).candidate(decisions)))
    tvm.ir.assert_structural_equal(built, two, map_free_vars=True)
    different = scheduled(SPEC, target, {**decisions, "lanes": 8})
    with pytest.raises(ValueError, match="[Ss]tructural"):
        tvm.ir.assert_structural_equal(built, different, map_free_vars=True)


def test_every_combination_comes_once() -> None:
    combined = list(combinations({"a": (1, 2), "b": (0, 1, 2), "c": (5,)}))
    assert combined[0] == {"a": 1, "b": 0, "c": 5}
    assert len(combined) == len({tuple(choice.items()) for choice in combined}) == 6
