"""The named sets of `natc tune --set`."""

from __future__ import annotations

import pytest

from natc.errors import SpecError
from natc.operations import operations_of, tuned_as
from natc.spec import KernelSpec
from natc.tune.sets import NAMES, Tuned, searches


def test_nat_is_one_kernel_with_all_that_training_runs() -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float32_rpb")
    assert searches("nat", "llvm") == [Tuned(spec, name) for name in ("forward", "gradients")]
    names = dict.fromkeys(map(tuned_as, operations_of(spec, ("forward", "backward"), "cuda")))
    on_gpus = [each for each in searches("nat", "cuda") if each.spec == spec]
    assert on_gpus == [Tuned(spec, name) for name in names]
    assert {spec.dtype for spec, _ in searches("nat", "cuda")} == {
        "float16", "bfloat16", "float32",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llvm", "cuda"])
def test_windows_hold_every_size_head_dim_and_rank_once(kind: str) -> None:
    wanted = searches("windows", kind)
    assert len(set(wanted)) == len(wanted)
    forward = {spec.name for spec, operation in wanted if operation == "forward"}
    for size in (3, 5, 7, 9, 11, 13):
        for head_dim in (32, 64):
            for dtype in ("float32", "bfloat16"):
                assert f"na2d_k{size}_d{head_dim}_{dtype}_rpb" in forward
    assert {f"na1d_k{size}_d32_bfloat16_rpb" for size in (7, 21, 63)} <= forward
    assert {f"na3d_k{size}_d32_float32_rpb" for size in (3, 5, 7)} <= forward
    assert "na3d_k11_d64_bfloat16" in forward
    operations = {(spec.name, operation) for spec, operation in wanted}
    assert all((spec.name, "forward") in operations for spec, _ in wanted)
    # Every kernel but LTX-2's decoder trains: by one operation, or by the single gradients.
    trained = {name for name, operation in operations if operation in ("gradients", "d_rpb")}
    assert forward - trained == {f"na3d_k11_d64_{dtype}" for dtype in ("float32", "bfloat16")}
    assert not {name for name, operation in operations if operation == "gradients"} & {
        name for name, operation in operations if operation == "d_rpb"
    }


def test_an_unknown_set_is_refused_with_the_list() -> None:
    with pytest.raises(SpecError, match=f"'vit'; it must be {' or '.join(NAMES)}"):
        searches("vit", "llvm")
