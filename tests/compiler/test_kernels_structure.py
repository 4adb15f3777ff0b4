"""Design spaces: whatever is decided, the kernel computes the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import tvm
from support.covering import covering
from support.forward_checks import call_forward, check_forward
from tvm.s_tir import Schedule

from natc.checks.inputs import inputs_of
from natc.compiler.build.cpu_code import cpu_code
from natc.compiler.build.lower import finished, scheduled
from natc.compiler.space import Decisions, combinations, read_decisions, space_for
from natc.errors import ScheduleError
from natc.host.detect import detect_host_cpu
from natc.operations import FORWARD, operations_of
from natc.spec import KernelSpec
from natc.targets import Target

HOST = detect_host_cpu()
GPU = Target("cuda", "sm_90")
TARGETS = pytest.mark.parametrize("target", [HOST, GPU], ids=str)
SPEC = KernelSpec.parse("na2d_k3x4_d16_float32_rpb")
# Its head dim is small, and so its space another, of few candidates.
DIRECT = KernelSpec.parse("na2d_k3x4_d8_float32_rpb")
# Head dimensions and types that take other ways through a schedule.
OTHERS = [
    KernelSpec.parse(name)
    for name in (
        *("na2d_k3_d1_float32", "na2d_k2_d12_float16_rpb", "na2d_k4x2_d8_bfloat16"),
        *("na2d_k3x9_d24_float16_rpb", "na2d_k2x17_d16_bfloat16", "na2d_k3_d48v80_float32_rpb"),
    )
]


def structures(spec: KernelSpec, target: Target, together: int) -> list[Mapping[str, int]]:
    """Return combinations of structure that hold every `together` choices that go together.

    together: 0 for the default choices alone.
    """
    space = space_for(target, spec=spec)
    if not together:
        return [{}]
    if space.candidates is not None:
        return covering(space.candidates(spec, target), together)
    # One lane needs no sum over lanes.
    every = combinations(space.structure(spec, target))
    return covering([c for c in every if (c["lanes"], c.get("lane_sum")) != (1, 1)], together)


def sampled(
    spec: KernelSpec,
    target: Target,
    structure: Mapping[str, int],
    seed: int,
    operation: str = FORWARD,
) -> Schedule:
    """Return a schedule as a search makes it: its numbers are drawn at random."""
    space = space_for(target, operation, spec)
    function = space.definition(operation, spec, space.exponential)
    sch = Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), seed=seed)
    space.apply(sch, spec, target, Decisions(structure, space.name, default_rest=False))
    return sch


def finished_module(sch: Schedule, spec: KernelSpec, target: Target) -> tvm.IRModule:
    (function,) = sch.mod.functions.values()
    return finished(function, spec, target)


@pytest.mark.parametrize(
    "spec, together", [(SPEC, 1), (DIRECT, 3), *((spec, 1) for spec in OTHERS)], ids=str
)
def test_every_structure_computes_the_same(spec: KernelSpec, together: int) -> None:
    """Every three choices of one kernel; of the others, each choice by itself.

    A kernel of tiles takes the default: test_cpu_tiles tries every two of its choices.
    """
    if space_for(HOST, spec=spec).candidates is not None:
        together = 0
    for seed, structure in enumerate(structures(spec, HOST, together), start=1):
        sch = sampled(spec, HOST, structure, seed, "forward_lse")
        try:
            check(spec, finished_module(sch, spec, HOST))
        except Exception as error:
            raise AssertionError(f"with {read_decisions(sch.trace)}: {error}") from error


def check(spec: KernelSpec, module: tvm.IRModule) -> None:
    function = cpu_code(module, HOST)["main"]
    # Windows larger than a dilation group; a map of whole windows; dilation groups of 7 or 8, 5.
    maps = (((1, 2, 9, 1), (1, 1)), ((2, 7, 31, 3), (1, 1)), ((1, 15, 5, 1), (2, 1)))
    for shape, dilation in maps:
        inputs = inputs_of(spec, shape)
        results = call_forward(function, inputs, scale=0.4, dilation=dilation, with_lse=True)
        check_forward(results, inputs, spec.kernel_size, scale=0.4, dilation=dilation)


@pytest.mark.parametrize(
    "name", ["na2d_k3_d48v80_float32_rpb", "na2d_k7_d24_float16_rpb", "na2d_k3_d20_float32"]
)
def test_vectors_have_lengths_that_registers_have(name: str) -> None:
    # A compiler takes others apart, element by element: 10 times as slow.
    spec = KernelSpec.parse(name)
    for operation in operations_of(spec):
        source = scheduled(spec, HOST, {}, operation=operation).script()
        lanes = [int(n) for n in re.findall(r"T\.vectorized\((\d+)\)", source)]
        # Sums of the bias's gradient have no channels.
        assert lanes or operation == "sum_rpb"
        assert all(n & (n - 1) == 0 for n in lanes), (operation, lanes)


@TARGETS
def test_sampled_decisions_build_the_same_kernel(target: Target) -> None:
    drawn = set()
    for seed, structure in enumerate(2 * structures(SPEC, target, 1), start=1):
        sch = sampled(SPEC, target, structure, seed)
        decisions = read_decisions(sch.trace)
        drawn.add(tuple(sorted(decisions.items())))
        lowered = finished_module(sch, SPEC, target)
        assert functions(lowered) == functions(scheduled(SPEC, target, decisions)), decisions
    assert len(drawn) > 3


@TARGETS
@pytest.mark.parametrize("operation", ["forward", "forward_lse"])
def test_the_same_decisions_are_lowered_to_the_same_source(target: Target, operation: str) -> None:
    structure = structures(SPEC, target, 1)[-1]
    decisions = read_decisions(sampled(SPEC, target, structure, 1).trace)
    first = scheduled(SPEC, target, decisions, operation=operation)
    two = scheduled(SPEC, target, dict(reversed(decisions.items())), operation=operation)
    assert first.script() == two.script()
    # Free: lowering notes a loop that is unrolled by its variable, outside of the loop.
    tvm.ir.assert_structural_equal(first, two, map_free_vars=True)
    # And other decisions to another.
    assert scheduled(SPEC, target, {}, operation=operation).script() != first.script()


@TARGETS
def test_a_decision_out_of_bounds_is_refused(target: Target) -> None:
    space = space_for(target, spec=SPEC)
    for name in read_decisions(sampled(SPEC, target, {}, 1).trace):
        with pytest.raises(ScheduleError, match=f"{name} is 12345; space {space.name} allows"):
            scheduled(SPEC, target, {name: 12345})
    message = f"decision colour is not of space {space.name}, which has "
    with pytest.raises(ScheduleError, match=message):
        scheduled(SPEC, target, {"colour": 1})


def functions(module: Any) -> dict[str, str]:
    """Return the body of each function of a module by name, without annotations."""
    bodies = {}
    for variable, function in module.functions.items():
        plain = tvm.tirx.PrimFunc(function.params, function.body, function.ret_type)
        bodies[variable.name_hint] = str(plain.with_attr("global_symbol", "main").script())
    return bodies
