"""Every choice of the spaces of gathering operations computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm
import tvm_ffi
from support.covering import covering

from natc.checks.operations import calls, check_operations
from natc.compiler.build import llvm
from natc.compiler.build.lower import scheduled
from natc.compiler.space import combinations, space_for
from natc.errors import CheckError, ScheduleError
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS, operations_of
from natc.spec import KernelSpec

HOST = detect_host_cpu()
GATHERING = [name for name in OPERATIONS if OPERATIONS[name].family != "forward"]
SPECS = [
    *("na2d_k3x4_d16_float32_rpb", "na1d_k5_d24_bfloat16_rpb", "na3d_k2_d12_float64"),
    "na3d_k2x2x5_d16v24_float16_rpb",
]


def operations_by_space(spec: KernelSpec) -> dict[str, list[str]]:
    spaces: dict[str, list[str]] = {}
    for operation in operations_of(spec):
        if operation in GATHERING:
            spaces.setdefault(space_for(HOST, operation, spec).name, []).append(operation)
    return spaces


def structures(spec: KernelSpec, operations: list[str]) -> list[tuple[str, dict[str, int]]]:
    """Return operations with combinations of the choices of their space.

    On two axes every pair of choices, each with every operation. The other kernels only take
    other ways through few structures.
    """
    every = list(combinations(space_for(HOST, operations[0], spec).structure(spec, HOST)))
    assert len(every) > 1
    if spec.rank != 2:
        return [(operation, some) for operation in operations for some in every[:: len(every) - 1]]
    numbered = [{"operation": i, **some} for i in range(len(operations)) for some in every]
    chosen = map(dict, covering(numbered, 2))
    return [(operations[choices.pop("operation")], choices) for choices in chosen]


@pytest.mark.parametrize("name", SPECS)
def test_every_structure_computes_the_same(name: str, tmp_path: Path) -> None:
    spec, module = KernelSpec.parse(name), tvm.IRModule({})
    operations: dict[str, tuple[str, dict[str, int]]] = {}
    for group in operations_by_space(spec).values():
        for operation, decisions in structures(spec, group):
            function = f"{operation}_{len(operations)}"
            operations[function] = operation, decisions
            module.update(scheduled(spec, HOST, decisions, operation=operation, name=function))
    llvm.link(module, HOST, operations, tmp_path / "kernels.so", tmp_path)
    library = tvm_ffi.load_module(str(tmp_path / "kernels.so"))
    for call in calls(spec.kernel_size):
        for function, (operation, decisions) in operations.items():
            try:
                check_operations(lambda _, f=function: library[f], spec, call, [operation])
            except CheckError as error:
                raise AssertionError(f"with {decisions}: {error}") from error


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
