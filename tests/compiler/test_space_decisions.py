"""Decisions: a schedule holds an answer to every question of its space, to be read back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import tvm
from tvm.s_tir import Schedule

from natc.compiler.build.lower import scheduled
from natc.compiler.space import (
    Decisions,
    all_decisions,
    combinations,
    read_decisions,
    space_for,
)
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.targets import Target

SPEC = KernelSpec.parse("na2d_k3_d8_float32")
# Of the space for CPUs that takes a row of the window at once: tiles do not cap logits.
BLOCKED = KernelSpec.parse("na2d_k3_d16_float32_rpb_softcap")
EACH_SPACE = [(target, SPEC) for target in ("llvm-x86-64-v3", "cuda-sm_90")]
EACH_SPACE.append(("llvm-x86-64-v4", BLOCKED))
TARGETS = ["llvm-x86-64-v3", "cuda-sm_90"]


def function_of(target: Target, spec: KernelSpec) -> tvm.IRModule:
    space = space_for(target, spec=spec)
    return tvm.IRModule({"main": space.definition(FORWARD, spec, space.exponential)})


def schedule(target: Target, spec: KernelSpec, decisions: Mapping[str, int]) -> Schedule:
    space = space_for(target, spec=spec)
    sch = Schedule(function_of(target, spec), debug_mask="none")
    space.apply(sch, spec, target, Decisions(decisions, space.name))
    return sch


@pytest.mark.parametrize("name, spec", EACH_SPACE, ids=str)
def test_every_combination_is_read_back_from_its_schedule(name: str, spec: KernelSpec) -> None:
    target = Target.parse(name)
    for decisions in all_decisions(spec, target, FORWARD)[::3]:
        trace = schedule(target, spec, decisions).trace
        assert read_decisions(trace) == decisions
        # As a database keeps it, without the schedule that it came from.
        assert read_decisions(trace.simplified(True)) == decisions


@pytest.mark.parametrize("name, spec", EACH_SPACE, ids=str)
def test_a_trace_replayed_makes_the_same_kernel(name: str, spec: KernelSpec) -> None:
    target = Target.parse(name)
    for decisions in all_decisions(spec, target, FORWARD)[:: 7 if target.kind == "llvm" else 11]:
        sch = schedule(target, spec, decisions)
        again = Schedule(function_of(target, spec), debug_mask="none")
        sch.trace.apply_to_schedule(again, remove_postproc=False)
        tvm.ir.assert_structural_equal(again.mod, sch.mod)


@pytest.mark.parametrize("name", TARGETS)
def test_missing_decisions_are_the_untuned_schedules(name: str) -> None:
    target = Target.parse(name)
    defaults = all_decisions(SPEC, target, FORWARD)[0]
    assert read_decisions(schedule(target, SPEC, {}).trace) == defaults
    structure = space_for(target).structure(SPEC, target)
    assert next(combinations(structure)) == {name: defaults[name] for name in structure}


def test_missing_decisions_build_the_same_kernel() -> None:
    decisions = {"lanes": 4, "lane_sum": 1, "unroll_taps": 3}
    target = Target.parse("llvm-x86-64-v3")
    built = scheduled(SPEC, target, decisions)
    whole = {**all_decisions(SPEC, target, FORWARD)[0], **decisions}
    two = scheduled(SPEC, target, whole)
    tvm.ir.assert_structural_equal(built, two, map_free_vars=True)
    different = scheduled(SPEC, target, {**decisions, "lanes": 8})
    with pytest.raises(ValueError, match="[Ss]tructural"):
        tvm.ir.assert_structural_equal(built, different, map_free_vars=True)


def test_every_combination_comes_once() -> None:
    combined = list(combinations({"a": (1, 2), "b": (0, 1, 2), "c": (5,)}))
    assert combined[0] == {"a": 1, "b": 0, "c": 5}
    assert len(combined) == len({tuple(choice.items()) for choice in combined}) == 6
