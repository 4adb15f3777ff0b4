"""The table of supported features agrees with the operations that exist and with calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_library import add_library

import natc
from natc import runtime
from natc.checks import support
from natc.checks.support import COMPOSITION, KERNEL, REFERENCE, Cell
from natc.operations import OPERATIONS, operations_of
from natc.runtime import registry
from natc.spec import RANKS, KernelSpec
from natc.store import workspace

pytestmark = pytest.mark.quick

# Derivatives of the fused functions that no kernel computes. Only for these may the reference
# serve.
DERIVED = ("double backward", "forward-mode")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return support.table()


# No call of the public functions runs these yet.
PACKED = ("forward_packed", "forward_lse_packed")
USED = [name for name in OPERATIONS if name not in PACKED]


def only(feature: str, *, rank: int = 2, target: str = "llvm") -> Cell:
    return support._cell(feature, support.ROWS[feature], rank, target)


def test_there_is_one_answer_for_each_feature_rank_and_target(cells: list[Cell]) -> None:
    places = {(cell.feature, cell.rank, cell.target) for cell in cells}
    assert len(places) == len(cells) == len(support.ROWS) * len(RANKS) * len(support.TARGETS)


def test_kernels_serve_whatever_they_are_promised_for(cells: list[Cell]) -> None:
    for cell in cells:
        if cell.feature.startswith(DERIVED) or (
            cell.target == "cuda" and cell.feature.endswith("float64")
        ):
            assert cell.supported == REFERENCE, cell
        elif cell.feature.endswith("additional tokens"):
            assert cell.supported == COMPOSITION, cell
        else:
            assert cell.supported == KERNEL, cell


def test_every_named_operation_exists_and_is_used(cells: list[Cell]) -> None:
    claimed = {name for cell in cells for name in cell.operations}
    assert claimed == set(USED)


@pytest.mark.parametrize(
    ("feature", "operations"),
    [
        ("fused forward", {"forward"}),
        ("logsumexp", {"forward_lse"}),
        ("fused backward", {"gradients"}),
        ("fused backward, rpb", {"gradients"}),
        ("unfused qk", {"qk"}),
        ("unfused qk, rpb, backward", {"av", "inverse_av", "sum_rpb"}),
        ("unfused av, backward", {"qk", "inverse_av"}),
    ],
)
def test_a_row_names_the_operations_of_its_own_step(feature: str, operations: set[str]) -> None:
    assert set(only(feature).operations) == operations


@pytest.mark.parametrize("missing", sorted(set(USED) - {"gradients"}))
def test_without_an_operation_its_rows_fall_to_the_reference(
    missing: str, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(
        cell
        for cell in cells
        if missing in cell.operations and not cell.feature.startswith(DERIVED)
    )

    leave_out(monkeypatch, missing)
    without = only(row.feature, rank=row.rank, target=row.target)
    assert without.supported == REFERENCE
    assert missing not in without.operations


def leave_out(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def fewer(spec: KernelSpec, *options: Any, **kind: Any) -> tuple[str, ...]:
        return tuple(name for name in operations_of(spec, *options, **kind) if name != missing)

    monkeypatch.setattr(support, "operations_of", fewer)


def test_without_all_gradients_at_once_kernels_compute_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_out(monkeypatch, "gradients")
    cell = only("fused backward, rpb")
    assert cell.supported == KERNEL
    assert set(cell.operations) == {"delta", "d_query", "d_key", "d_value", "d_rpb"}


def test_a_call_that_goes_to_the_reference_is_seen_to() -> None:
    with natc.force_reference():
        cell = only("fused forward")
    assert (cell.supported, cell.operations) == (REFERENCE, ())


def test_what_torch_computes_is_seen() -> None:
    def call(rank: int, begin: Any) -> None:
        support.ROWS["fused forward"](rank, begin)
        torch.zeros(2, 2) @ torch.zeros(2, 2)

    assert support._cell("", call, 2, "llvm").supported == COMPOSITION


def test_strict_changes_nothing(monkeypatch: pytest.MonkeyPatch, cells: list[Cell]) -> None:
    monkeypatch.setenv("NATC_STRICT", "1")
    before = next(c for c in cells if (c.feature, c.rank, c.target) == ("float64", 2, "cuda"))
    assert only("float64", target="cuda").supported == before.supported == REFERENCE


def test_nothing_is_left_behind() -> None:
    resolved, warned = registry.resolved, set(registry.warned)
    only("fused forward", target="cuda")
    only("float64", target="cuda")
    assert registry.resolved is resolved and registry.warned == warned
    assert sys.getprofile() is None


def test_installed_needs_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiny libraries hold no kernels; their manifests name the kernels that they would serve.
    for name, operations in {
        "na2d_k7_d32_float32": operations_of(KernelSpec.parse("na2d_k7_d32_float32"), kind="llvm"),
        "na1d_k4_d32_float16_rpb": ("forward",),
    }.items():
        add_library(tmp_path, KernelSpec.parse(name), operations=operations)
    monkeypatch.setattr(workspace, "library_dirs", lambda: [tmp_path])
    runtime.clear()
    cells = support.table()
    runtime.clear()
    installed = {(cell.feature, cell.rank) for cell in cells if cell.installed}
    assert {cell.target for cell in cells if cell.installed} == {"llvm"}
    for feature in ("fused forward", "fused backward", "unfused qk, backward", "dilation"):
        assert (feature, 2) in installed
    assert {feature for feature, rank in installed if rank == 1} == {"fused forward, rpb"}
    for feature in (
        "fused forward, rpb",
        "float16",
        "kernel_size even, from 2",
        "double backward",
    ):
        assert (feature, 2) not in installed
