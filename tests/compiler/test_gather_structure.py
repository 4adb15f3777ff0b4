"""Every choice of the spaces of gathering operations computes the same."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import tvm
import tvm_ffi

from natc.checks.operations import calls, check_operations
from natc.compiler.build import llvm
from natc.compiler.build.lower import scheduled
from natc.compiler.space import combinations, space_for
from natc.errors import ScheduleError
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS, operations_of
from natc.spec import KernelSpec
from natc.store.manifest import function_name

HOST = detect_host_cpu()
GATHERING = [name for name in OPERATIONS if OPERATIONS[name].family != "forward"]
SPECS = [
    *("na2d_k3x4_d16_float32_rpb", "na1d_k5_d24_bfloat16_rpb", "na3d_k2x3x2_d12_float64"),
    "na3d_k2x2x5_d16v24_float16_rpb",
]


def operations_by_space(spec: KernelSpec) -> dict[str, list[str]]:
    spaces: dict[str, list[str]] = {}
    for operation in operations_of(spec):
        if operation in GATHERING:
            spaces.setdefault(space_for(HOST, operation, spec).name, []).append(operation)
    return spaces


def build(spec: KernelSpec, decisions: Mapping[str, int], operations: list[str]) -> tvm_ffi.Module:
    module = tvm.IRModule({})
    for operation in operations:
        name = function_name(spec, operation, HOST)
        module.update(scheduled(spec, HOST, decisions, operation=operation, name=name))
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "kernels.so"
        llvm.link(
            module, HOST, [function_name(spec, o, HOST) for o in operations], output, Path(scratch)
        )
        return tvm_ffi.load_module(str(output))


@pytest.mark.parametrize("name", SPECS)
def test_every_structure_computes_the_same(name: str) -> None:
    spec = KernelSpec.parse(name)
    for operations in operations_by_space(spec).values():
        space = space_for(HOST, operations[0], spec)
        every = list(combinations(space.structure(spec, HOST)))
        assert len(every) > 1
        # All of them for one kernel; the others only take other ways through few of them.
        for decisions in every if spec.rank == 2 else every[:: len(every) - 1]:
            module = build(spec, decisions, operations)
            for call in calls(spec.kernel_size):
                check_operations(
                    lambda operation, m=module: m[function_name(spec, operation, HOST)],
                    spec,
                    call,
                    operations,
                )


def test_decisions_are_checked() -> None:
    spec = KernelSpec.parse(SPECS[0])
    for operation in ("d_key", "delta"):
        with pytest.raises(ScheduleError, match="decision lanes is 5"):
            scheduled(spec, HOST, {"lanes": 5}, operation=operation)
        space = space_for(HOST, operation, spec).name
        with pytest.raises(ScheduleError, match=f"colour .* {space}"):
            scheduled(spec, HOST, {"colour": 5}, operation=operation)


def test_taps_without_a_pair_are_skipped() -> None:
    # Without this a gradient of keys would do (2K-1)^2 / K^2 of the work that is needed.
    spec = KernelSpec.parse(SPECS[0])
    for operation in ("d_query", "d_key", "d_value", "av", "inverse_av", "sum_rpb"):
        text = scheduled(spec, HOST, {}, operation=operation).script()
        assert "if 0 < attended_0[" in text and "if 0 < attended_1[" in text, operation
        assert "natc.skip" not in text
    # From a query, there are K. Rows of them are skipped, and rows of offsets.
    text = scheduled(spec, HOST, {}, operation="d_rpb").script()
    assert "if 0 < attended_0[" in text and "if 0 < reached_0[" in text
    assert "natc.skip" not in text
