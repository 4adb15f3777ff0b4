"""What the coverage table calls a kernel can be compiled: defined, and with a design space."""

from __future__ import annotations

from natc import coverage
from natc.operations import OPERATIONS
from natc.space import space_for
from natc.spec import KernelSpec
from natc.targets import Target

TARGETS = {"llvm": Target("llvm", "x86-64-v3"), "cuda": Target("cuda", "sm_90")}


def test_every_operation_that_the_table_names_has_a_definition_and_a_space() -> None:
    claimed = {
        (cell.rank, cell.target, name) for cell in coverage.table() for name in cell.operations
    }
    assert {name for _, _, name in claimed} <= set(OPERATIONS)
    assert len(claimed) > 6 * 10
    for rank, target, name in sorted(claimed):
        spec = KernelSpec.make(3, rank=rank, head_dim=8, rpb=True)
        space = space_for(TARGETS[target], name, spec)
        assert space.structure(spec, TARGETS[target])
        function = space.definition(name, spec, space.exponential)
        assert len(function.params) > len(OPERATIONS[name].tensors)
