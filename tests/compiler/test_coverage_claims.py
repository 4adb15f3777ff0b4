"""Kernels that the coverage table calls supported have a definition and a design space."""

from __future__ import annotations

from pathlib import Path

import pytest

from natc import runtime
from natc.checks import support
from natc.compiler.build import build_library
from natc.compiler.space import space_for
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS
from natc.runtime import registry
from natc.spec import KernelSpec
from natc.targets import Target

TARGETS = {"llvm": Target("llvm", "x86-64-v3"), "cuda": Target("cuda", "sm_90")}


def test_every_operation_that_the_table_names_has_a_definition_and_a_space() -> None:
    claimed = {
        (cell.rank, cell.target, name) for cell in support.table() for name in cell.operations
    }
    assert {name for _, _, name in claimed} <= set(OPERATIONS)
    assert len(claimed) > 6 * 10
    for rank, target, name in sorted(claimed):
        spec = KernelSpec.make(3, rank=rank, head_dim=8, rpb=True)
        space = space_for(TARGETS[target], name, spec)
        assert space.structure(spec, TARGETS[target])
        function = space.definition(name, spec, space.exponential)
        assert len(function.params) > len(OPERATIONS[name].tensors)


# The calls of these rows need a kernel with window 3 and head_dim 8 in float32.
ONE_KERNEL = [
    feature
    for feature in support.ROWS
    if not feature.startswith(("kernel_size", "window larger", "head_dim", "value_dim"))
    and not feature.endswith(("float16", "float64"))
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lib")
    for rpb in (False, True):
        spec = KernelSpec.make(3, rank=1, head_dim=8, rpb=rpb)
        build_library(spec, detect_host_cpu(), directory)
    return directory


@pytest.mark.parametrize("feature", ONE_KERNEL)
def test_real_kernels_serve_what_the_table_says(
    feature: str, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = support._cell(feature, support.ROWS[feature], 1, "llvm")
    monkeypatch.setenv("NATC_LIB_PATH", str(libraries))
    # Whatever else was built on this machine must not help.
    monkeypatch.setenv("NATC_CACHE_DIR", str(libraries / "none"))
    monkeypatch.setenv("NATC_STRICT", "1")
    runtime.clear()
    support.ROWS[feature](1, lambda: None)
    ran = {key.operation for key, kernel in registry.resolved.items() if kernel is not None}
    runtime.clear()
    assert set(claimed.operations) <= ran
    assert ran or claimed.supported == support.REFERENCE
