"""Design spaces: whatever is decided, the kernel computes the same."""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
import tvm
from tvm.s_tir import Schedule

from natc.checks.guarded import call_forward, check_forward
from natc.checks.inputs import inputs_of
from natc.compiler.build.lower import compiler_target, finished, scheduled
from natc.compiler.space import Decisions, combinations, read_decisions, space_for
from natc.errors import ScheduleError
from natc.host.detect import detect_host_cpu
from natc.operations import FORWARD, operations_of
from natc.spec import KernelSpec
from natc.targets import Target

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3x4_d16_float32_rpb")
# Its head dim is small, and so its space another.
DIRECT = KernelSpec.parse("na2d_k3x4_d8_float32_rpb")
# Head dimensions and types that take other ways through a schedule.
OTHERS = [
    KernelSpec.parse(name)
    for name in (
        *("na2d_k3_d1_float32", "na2d_k2_d12_float16_rpb", "na2d_k4x2_d8_bfloat16"),
        *("na2d_k3x9_d24_float16_rpb", "na2d_k2x17_d16_bfloat16", "na2d_k3_d48v80_float32_rpb"),
    )
]
MOST = 72


def sampled(spec: KernelSpec, target: Target, decisions: Mapping[str, int], seed: int) -> Schedule:
    """Return a schedule as a search makes it: open decisions are drawn at random."""
    space = space_for(target, spec=spec)
    module = tvm.IRModule({"main": space.definition(FORWARD, spec, space.exponential)})
    sch = Schedule(module, seed=seed)
    space.apply(sch, spec, target, Decisions(decisions, space.name, default_rest=False))
    return sch


@functools.cache
def choices(spec: KernelSpec, target: Target, most: int = MOST) -> tuple[dict[str, int], ...]:
    """Return combinations of structure, each with one draw of the sampled numbers.

    All combinations of a space, or `most` of them, mixed. A space refuses repeated kernels.
    """
    every = list(combinations(space_for(target, spec=spec).structure(spec, target)))
    random.Random(0).shuffle(every)
    drawn = []
    for seed, structure in enumerate(every[:most], start=1):
        with contextlib.suppress(ScheduleError):
            drawn.append(read_decisions(sampled(spec, target, structure, seed).trace))
    assert len(drawn) >= min(most, len(every)) / 2
    return tuple(drawn)


def check(spec: KernelSpec, decisions: Mapping[str, int]) -> None:
    module = scheduled(spec, HOST, decisions, operation="forward_lse")
    function = tvm.compile(module, target=compiler_target(HOST))["main"]
    for shape, dilation in (((2, 7, 5, 3), (1, 2)), ((1, 2, 9, 1), (1, 1))):
        inputs = inputs_of(spec, shape)
        results = call_forward(function, inputs, scale=0.4, dilation=dilation, with_lse=True)
        check_forward(results, inputs, spec.kernel_size, scale=0.4, dilation=dilation)


@pytest.mark.parametrize("spec", [SPEC, DIRECT], ids=str)
def test_every_structure_computes_the_same(spec: KernelSpec) -> None:
    every = choices(spec, HOST, most=36)
    assert len({tuple(sorted(decisions.items())) for decisions in every}) == len(every) > 1
    for decisions in every:
        try:
            check(spec, decisions)
        except Exception as error:
            raise AssertionError(f"with {decisions}: {error}") from error


@pytest.mark.parametrize("spec", OTHERS, ids=str)
def test_other_kernels_under_some_structures(spec: KernelSpec) -> None:
    for decisions in choices(spec, HOST, most=6):
        try:
            check(spec, decisions)
        except Exception as error:
            raise AssertionError(f"with {decisions}: {error}") from error


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


@pytest.mark.parametrize("target", [HOST, Target("cuda", "sm_90")], ids=str)
def test_sampled_decisions_build_the_same_kernel(target: Target) -> None:
    space = space_for(target, spec=SPEC)
    every = [
        {name: decisions[name] for name in space.structure(SPEC, target)}
        for decisions in choices(SPEC, target, most=8)
    ]
    drawn = set()
    for seed in range(1, 9):
        sch = sampled(SPEC, target, every[seed % len(every)], seed)
        decisions = read_decisions(sch.trace)
        drawn.add(tuple(sorted(decisions.items())))
        again = scheduled(SPEC, target, decisions)
        (drawn_function,) = sch.mod.functions.values()
        lowered = tvm.IRModule({"main": finished(drawn_function, SPEC, target)})
        assert functions(lowered) == functions(again), decisions
    assert len(drawn) > 2


@pytest.mark.parametrize("target", [HOST, Target("cuda", "sm_80")], ids=str)
@pytest.mark.parametrize("operation", ["forward", "forward_lse"])
def test_the_same_decisions_are_lowered_to_the_same_source(target: Target, operation: str) -> None:
    decisions = choices(SPEC, target, most=8)[-1]
    first = scheduled(SPEC, target, decisions, operation=operation)
    two = scheduled(SPEC, target, dict(reversed(decisions.items())), operation=operation)
    assert first.script() == two.script()
    # Free: lowering notes a loop that is unrolled by its variable, outside of the loop.
    tvm.ir.assert_structural_equal(first, two, map_free_vars=True)
    # And other decisions to another.
    assert scheduled(SPEC, target, {}, operation=operation).script() != first.script()


@pytest.mark.parametrize("target", [HOST, Target("cuda", "sm_80")], ids=str)
def test_a_decision_out_of_bounds_is_refused(target: Target) -> None:
    space = space_for(target, spec=SPEC)
    for name in read_decisions(sampled(SPEC, target, {}, 1).trace):
        with pytest.raises(ScheduleError, match=f"{name} is 12345; space {space.name} allows"):
            scheduled(SPEC, target, {name: 12345})
    with pytest.raises(ScheduleError, match=f"colour .* {space.name}"):
        scheduled(SPEC, target, {"colour": 1})


def functions(module: Any) -> str:
    """Return the body of a module's only function, without its name and annotations."""
    (function,) = module.functions.values()
    plain = tvm.tirx.PrimFunc(function.params, function.body, function.ret_type)
    return str(plain.with_attr("global_symbol", "main").script())
