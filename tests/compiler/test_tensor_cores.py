"""Operations on tensor cores, their CUDA source executed on the CPU."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.special_numbers import same
from support.tensor_core_kernels import (
    CALLS,
    GPU,
    Kernels,
    broken,
    draw,
    exact,
    random_call,
    run,
    sums_over_pairs,
)
from torch import Tensor

from natc.checks.operations import Call, check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.compiler.build import cuda
from natc.compiler.build.lower import scheduled
from natc.compiler.space import space_for
from natc.errors import CheckError, ScheduleError
from natc.operations import operations_of
from natc.spec import KernelSpec

INF, NAN = math.inf, math.nan
SMALL, LINE = "na2d_k3_d16_float16_rpb", "na1d_k23_d32_bfloat16_rpb"
SEVEN, WIDE, SOLID = (
    "na2d_k7_d32_float16_rpb",
    "na2d_k13_d16_float16_rpb",
    "na3d_k2x3x4_d16_float16_rpb",
)
INVERSE_LINE, INVERSE_SOLID = "na1d_k23_d32v64_bfloat16_rpb", "na3d_k2x3x4_d16v48_float16_rpb"
BLOCKS = "na2d_k10x4_d112v80_bfloat16"
ONES = "na3d_k1x3x1_d16_bfloat16_rpb"

# Operations that are built together.
FORWARDS = operations_of(KernelSpec.parse(SMALL), ("forward",))
FORWARD, D_QUERY, INVERSE, D_RPB = ("forward_lse",), ("d_query",), ("d_key", "d_value"), ("d_rpb",)
FUSED = [*FORWARD, *D_QUERY, *INVERSE]

# The kernels of each operation, with decisions that are not the default. Rows of keys one by one,
# at once, and in parts, the last of them shorter; odd numbers of products; channels in blocks
# of 64, 32 and 16; more offsets on the last axis than a warp has lanes; one axis, on which the
# halves of a tile lie side by side; even windows, of another size on each axis.
KERNELS: dict[tuple[str, ...], dict[str, dict[str, int] | None]] = {
    FORWARDS: {SMALL: None},
    FORWARD: {
        SEVEN: None,
        WIDE: None,
        "na2d_k10x4_d48v112_bfloat16": {
            "tensor_cores": 1,
            "products": 8,
            "warps_0": 2,
            "warps_1": 2,
        },
        LINE: {"tensor_cores": 1, "warps_1": 1},
        SOLID: None,
        ONES: None,
    },
    D_QUERY: {
        SMALL: None,
        SEVEN: None,
        WIDE: None,
        "na2d_k3x5_d32_float16": {"tensor_cores": 1, "rows": 4},
        "na2d_k10x4_d48v32_bfloat16": {"tensor_cores": 1, "rows": 4, "warps_0": 2, "warps_1": 2},
        "na2d_k2x12_d16v48_bfloat16_rpb": {"tensor_cores": 1, "rows": 1, "warps_1": 4},
        LINE: {"tensor_cores": 1, "warps_1": 1},
        "na1d_k4_d112v64_float16": None,
        SOLID: {"tensor_cores": 1, "rows": 2},
        ONES: None,
    },
    INVERSE: {SMALL: None, SEVEN: None, INVERSE_LINE: None, INVERSE_SOLID: None, ONES: None},
    **{
        (operation,): {
            BLOCKS: {"tensor_cores": 1, "warps_0": 2, "warps_1": 2, "resident_warps": 8}
        }
        for operation in INVERSE
    },
    D_RPB: {
        SMALL: None,
        WIDE: {"tensor_cores": 1, "rows": 2, "warps_1": 2},
        "na2d_k3x20_d16v48_bfloat16_rpb": None,
        LINE: None,
        "na1d_k4_d112v64_float16_rpb": {"tensor_cores": 1, "warps_1": 1},
        SOLID: None,
        ONES: None,
    },
}


def group_of(operation: str, name: str) -> tuple[str, ...]:
    """Return the operations that the library of a kernel's operation has."""
    return next(group for group, names in KERNELS.items() if operation in group and name in names)


def check(kernels: Kernels, group: tuple[str, ...], name: str, call: Call, seed: int = 0) -> None:
    library = kernels(name, group, KERNELS[group][name])
    check_operations(library.__getitem__, KernelSpec.parse(name), call, group, seed=seed)


@pytest.mark.parametrize(
    "group, name", [(g, name) for g, names in KERNELS.items() for name in names]
)
def test_results_agree_with_the_reference(
    kernels: Kernels, group: tuple[str, ...], name: str
) -> None:
    for call in CALLS[KernelSpec.parse(name).rank]:
        check(kernels, group, name, call)


@pytest.mark.parametrize(
    "group, name", [(D_QUERY, SMALL), (D_QUERY, LINE), (INVERSE, SMALL), (INVERSE, INVERSE_LINE)]
)
def test_random_calls_agree_with_the_reference(
    kernels: Kernels, group: tuple[str, ...], name: str
) -> None:
    generator = random.Random(name)
    for seed in range(8):
        check(kernels, group, name, random_call(generator, KernelSpec.parse(name).rank), seed)


@pytest.mark.parametrize("sizes", [(7, 28), (8, 13), (14, 6), (13, 16), (28, 9), (3, 41)], ids=str)
def test_keys_at_borders(kernels: Kernels, sizes: tuple[int, int]) -> None:
    """More queries attend to them than to keys inside, up to all queries of the map."""
    check(kernels, INVERSE, SEVEN, Call(sizes, batch=1, heads=2, heads_kv=1))


@pytest.mark.parametrize("chunks", [1, 2, 1000])
@pytest.mark.parametrize("name", [SMALL, LINE])
def test_chunks_of_d_rpb(kernels: Kernels, name: str, chunks: int) -> None:
    """One chunk for all tiles; and more chunks than tiles, so that the last are 0."""
    call = CALLS[KernelSpec.parse(name).rank][1]
    check(kernels, D_RPB, name, replace(call, chunks=chunks))


@pytest.mark.parametrize(
    "group, name, call",
    [
        (D_QUERY, SMALL, Call((9, 21), dilation=(2, 1))),
        (INVERSE, SMALL, Call((9, 21), dilation=(2, 1))),
        (D_RPB, SMALL, Call((9, 21))),
        (D_RPB, LINE, Call((40,))),
    ],
)
def test_the_order_of_threads_changes_no_bit(
    kernels: Kernels, group: tuple[str, ...], name: str, call: Call
) -> None:
    library = kernels(name, group, KERNELS[group][name])
    check_operations(library.in_orders, KernelSpec.parse(name), call, group)


def test_products_are_volatile() -> None:
    """All lanes must reach a product, and compilers may move other inline code into a branch."""
    header = (Path(cuda.__file__).parent / "launcher" / "mma.cuh").read_text()
    assert re.findall(r"asm ?(\w*)\(\"mma\.sync\.aligned", header) == ["volatile"] * 2


# Which kernel is launched


@pytest.mark.parametrize("group", [FORWARDS, D_QUERY, INVERSE, D_RPB])
def test_tensor_cores_serve_calls_without_strides_only(
    kernels: Kernels, group: tuple[str, ...]
) -> None:
    spec, library = KernelSpec.parse(SMALL), kernels(SMALL, group, KERNELS[group][SMALL], broken)
    for operation in group:
        with pytest.raises(CheckError, match="relative error"):
            check_operations(library.__getitem__, spec, Call((6, 9)), (operation,))
        strided = Call((6, 9), stride=(1, 2))
        check_operations(library.__getitem__, spec, strided, (operation,))


# Schedules from before there was a choice name no tensor_cores, and mean CUDA cores.
OLD: dict[str, dict[str, int]] = {
    "forward": {"lanes": 4},
    **{operation: {"sums": 32} for operation in ("d_query", "d_key", "d_value")},
    "d_rpb": {"site_bytes": 0},
}
NEW: dict[str, dict[str, int]] = {
    "forward": {"lanes": 4},
    **{operation: {"sums": 64} for operation in ("d_query", "d_key", "d_value")},
    "d_rpb": {"rows": 2},
}


@pytest.mark.parametrize("operation", OLD)
def test_decisions_choose_tensor_cores(operation: str) -> None:
    spec = KernelSpec.parse(SEVEN)
    for decisions, serves in (
        ({}, True),
        (OLD[operation], False),
        ({**NEW[operation], "tensor_cores": 1}, True),
        ({"tensor_cores": 0}, False),
    ):
        code = scheduled(spec, GPU, decisions, operation=operation).script()
        assert ("natc_mma_f16" in code) == serves, decisions


@pytest.mark.parametrize("operation", ["d_query", "d_key", "d_value"])
def test_both_kinds_of_cores_are_searched(operation: str) -> None:
    spec = KernelSpec.parse(SEVEN)
    assert space_for(GPU, operation, spec).structure(spec, GPU)["tensor_cores"] == (1, 0)


GATHERED = ("na2d_k7_d144_float16", "na2d_k3_d32v8_float16")
INVERTED = ("na1d_k3_d16v144_float16",)


@pytest.mark.parametrize(
    "operation, name",
    [
        (operation, name)
        for operation, names in {
            "forward": GATHERED,
            "d_query": GATHERED,
            "d_key": INVERTED,
            "d_value": INVERTED,
        }.items()
        for name in ("na2d_k7_d32_float32", "na2d_k7_d24_float16", *names)
    ]
    + [("d_rpb", "na2d_k7_d32_float32_rpb")],
)
def test_kernels_without_tensor_cores(operation: str, name: str) -> None:
    spec = KernelSpec.parse(name)
    assert "natc_mma" not in scheduled(spec, GPU, {}, operation=operation).script()
    with pytest.raises(ScheduleError, match="decision tensor_cores is not of space cuda_"):
        scheduled(spec, GPU, {"tensor_cores": 0}, operation=operation)


@pytest.mark.parametrize(
    "operation, decisions, message",
    [
        ("forward", {"tensor_cores": 2}, "tensor_cores is 2; space cuda_simt allows 0, 1"),
        ("forward", {"tensor_cores": 1, "products": 5}, "products is 5; .* allows 16, 8"),
        ("forward", {"tensor_cores": 1, "lanes": 2}, "lanes is 2; space cuda_simt allows 4"),
        ("forward", {"tensor_cores": 0, "products": 8}, "products is not of space cuda_simt"),
        ("forward", {"tensor_cores": 1, "tile_h": 8}, "tile_h is not of space cuda_simt"),
        ("d_query", {"tensor_cores": 2}, "tensor_cores is 2; space cuda_gather allows 0, 1"),
        ("d_query", {"tensor_cores": 1, "rows": 3}, "rows is 3; .* allows 2, 1, 4"),
        ("d_query", {"tensor_cores": 1, "sums": 32}, "sums is 32; space cuda_gather allows 64"),
        ("d_query", {"tensor_cores": 0, "rows": 2}, "rows is not of space cuda_gather"),
        ("d_query", {"tensor_cores": 1, "threads": 64}, "threads is not of space cuda_gather"),
        *(
            (operation, decisions, message)
            for operation in INVERSE
            for decisions, message in [
                ({"tensor_cores": 2}, "tensor_cores is 2; space cuda_gather allows 0, 1"),
                ({"tensor_cores": 1, "warps_0": 3}, "warps_0 is 3; .* allows 4, 2, 1"),
                ({"tensor_cores": 1, "products": 8}, "products is not of space cuda_gather"),
                ({"tensor_cores": 0, "warps_1": 2}, "warps_1 is not of space cuda_gather"),
            ]
        ),
        ("d_rpb", {"tensor_cores": 1, "rows": 4}, "rows is 4; space cuda_gather allows 1, 2"),
    ],
)
def test_decisions_that_do_not_exist_are_refused(
    operation: str, decisions: Mapping[str, int], message: str
) -> None:
    name = SEVEN if operation == "d_rpb" else "na2d_k7_d32_float16"
    with pytest.raises(ScheduleError, match=message):
        scheduled(KernelSpec.parse(name), GPU, decisions, operation=operation)


# NaN and infinities, inside of windows and beside them


def numbers_of(
    operation: str, name: str, tensors: dict[str, Tensor], options: Mapping[str, Any], scale: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return brute force's results, and the tensors with lse and delta, which gradients read."""
    inputs = dict(tensors)
    if operation in FORWARD:
        del inputs["d_output"]
    expected = exact(KernelSpec.parse(name), inputs, options, scale)
    delta = (tensors["d_output"].double() * expected["output"]).sum(-1)
    return expected, {**tensors, "lse": expected["lse"].float(), "delta": delta.float()}


def run_kernel(
    kernels: Kernels,
    operation: str,
    name: str,
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    scale: float = 0.25,
) -> list[Tensor]:
    """Return the results of a kernel of `KERNELS`."""
    group = group_of(operation, name)
    function = kernels(name, group, KERNELS[group][name])[operation]
    return run(function, operation, tensors, options, scale)


def compare(
    kernels: Kernels,
    operation: str,
    name: str,
    tensors: dict[str, Tensor],
    options: Mapping[str, Any] | None = None,
    *,
    scale: float = 0.25,
    spoil: Mapping[str, float] | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (result, exact result), whose kinds of numbers and finite values agree.

    spoil: a number for the query in the middle row and column 5, by "lse" or "delta".
    """
    options, spec = options or {}, KernelSpec.parse(name)
    expected, passed = numbers_of(operation, name, tensors, options, scale)
    for number, value in (spoil or {}).items():
        passed[number][0, passed[number].shape[1] // 2, 5, 0] = value
    result, *lse = run_kernel(kernels, operation, name, passed, options, scale)
    if tolerance is None:
        tolerance = 2 * RELATIVE_TOLERANCE[tensors["query"].dtype]
    if operation in FORWARD:
        same(result, expected["output"], tolerance)
        # A window with NaN and inf may have either as the logarithm of its sum.
        same(lse[0].masked_fill(expected["lse"].isnan(), NAN), expected["lse"], 1e-5)
        return result, expected["output"]
    if operation in INVERSE:
        expected = sums_over_pairs(spec, passed, options, scale)
    elif operation in D_RPB:
        # Exact in float32: nothing is rounded to the kernel's dtype on the way.
        result, tolerance = result.double().sum(0), 2e-5
    same(result, expected[operation], tolerance)
    return result, expected[operation]


def spoilt(*names: str) -> list[tuple[str, float]]:
    """Return (tensor, value) for these tensors and the bias."""
    values = [(name, value) for name in names for value in (NAN, INF)]
    return values + [("rpb", value) for value in (NAN, INF, -INF)]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": (True, True)},
    "dilated": {"dilation": (2, 1)},
}
INPUTS = ("query", "key", "value")
SPOILT = [
    *itertools.product(
        FORWARD, (SMALL, WIDE), [(19, 10)], [*spoilt(*INPUTS), ("key", -INF)], OPTIONS
    ),
    *itertools.product(
        D_QUERY, [SMALL], [(9, 10)], [*spoilt(*INPUTS, "d_output"), ("key", -INF)], OPTIONS
    ),
    *itertools.product(
        INVERSE, [SMALL], [(9, 19)], [*spoilt(*INPUTS, "d_output"), ("query", -INF)], OPTIONS
    ),
]


@pytest.mark.parametrize("operation, name, sizes, spoilt, options", SPOILT, ids=str)
def test_a_number_that_is_not_finite_reaches_only_its_pairs(
    kernels: Kernels,
    operation: str,
    name: str,
    sizes: tuple[int, ...],
    spoilt: tuple[str, float],
    options: str,
) -> None:
    tensor, value = spoilt
    tensors = draw(KernelSpec.parse(name), (1, *sizes, 1))
    tensors[tensor].view(-1)[tensors[tensor].numel() // 2 + 1] = value
    compare(kernels, operation, name, tensors, OPTIONS[options])


@pytest.mark.parametrize("tensor, value", [*spoilt(*INPUTS), ("d_output", NAN), ("", 0)], ids=str)
@pytest.mark.parametrize("name, sizes", [(SMALL, (9, 10)), (LINE, (33,))], ids=str)
def test_a_number_that_is_not_finite_reaches_only_its_offsets(
    kernels: Kernels, name: str, sizes: tuple[int, ...], tensor: str, value: float
) -> None:
    tensors = draw(KernelSpec.parse(name), (1, *sizes, 2))
    if tensor:
        # In one head and a corner of the map, so that most offsets have no such pair.
        tensors[tensor].view(-1)[1] = value
    _, expected = compare(kernels, "d_rpb", name, tensors)
    finite = expected.isfinite().double().mean()
    assert finite > 0.2 if tensor else finite == 1


@pytest.mark.parametrize("value", [NAN, INF], ids=str)
@pytest.mark.parametrize(
    "operation, name, sizes, tensor",
    [
        ("forward_lse", LINE, (33,), "value"),
        ("forward_lse", SOLID, (5, 5, 11), "value"),
        ("d_query", LINE, (33,), "key"),
        ("d_query", "na2d_k2x12_d16v48_bfloat16_rpb", (5, 27), "key"),
        ("d_query", SOLID, (4, 5, 11), "key"),
        ("d_key", INVERSE_LINE, (77,), "query"),
        ("d_key", INVERSE_SOLID, (5, 6, 19), "query"),
        ("d_value", INVERSE_LINE, (77,), "d_output"),
        ("d_value", INVERSE_SOLID, (5, 6, 19), "d_output"),
    ],
)
def test_spoilt_numbers_in_other_ranks_and_halos(
    kernels: Kernels, operation: str, name: str, sizes: tuple[int, ...], tensor: str, value: float
) -> None:
    tensors = draw(KernelSpec.parse(name), (1, *sizes, 1))
    tensors[tensor].view(-1)[tensors[tensor].numel() // 2 + 1] = value
    result, _ = compare(kernels, operation, name, tensors)
    assert not result.isfinite().all() and (operation == "d_query" or result.isfinite().any())


# The tensor that an operation weighs and sums.
WEIGHED = {"forward_lse": "value", "d_query": "key", "d_key": "query", "d_value": "d_output"}


@pytest.mark.parametrize("operation", FUSED)
def test_a_row_of_infinities(kernels: Kernels, operation: str) -> None:
    """In a tile, some rows see only finite numbers, and others infinities of both signs."""
    tensors = draw(KernelSpec.parse(SMALL), (1, 9, 18, 2))
    weighed = tensors[WEIGHED[operation]]
    weighed[:, 4, ::2, :, 3] = INF
    weighed[:, 4, 1::2, :, 3] = -INF
    weighed[:, 6, :, :, 8] = -INF if operation in FORWARD else NAN
    compare(kernels, operation, SMALL, tensors)


@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("operation", FUSED)
def test_windows_whose_logits_are_all_alike(
    kernels: Kernels, operation: str, value: float
) -> None:
    """All are infinite or NaN, so the logsumexp is not finite either."""
    tensors = draw(KernelSpec.parse(SMALL), (1, 6, 11, 2))
    tensors["rpb"][1] = value
    compare(kernels, operation, SMALL, tensors)


@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("number", ["lse", "delta"])
def test_a_spoilt_lse_or_delta_changes_the_d_query_of_its_query_only(
    kernels: Kernels, number: str, value: float
) -> None:
    tensors = draw(KernelSpec.parse(SMALL), (1, 6, 11, 1))
    _, passed = numbers_of("d_query", SMALL, tensors, {}, 0.25)
    (plain,) = run_kernel(kernels, "d_query", SMALL, passed, {})
    passed[number][0, 3, 5, 0] = value
    (spoilt,) = run_kernel(kernels, "d_query", SMALL, passed, {})
    own = torch.zeros(plain.shape[:-1], dtype=torch.bool)
    own[0, 3, 5, 0] = True
    assert torch.equal(spoilt[~own], plain[~own])
    # exp(logit - lse) is at most 1: a recomputed logit may exceed lse by its last bits.
    assert bool(spoilt[own].isfinite().all()) == (number == "lse" and value == -INF)


@pytest.mark.parametrize("value", [INF, NAN], ids=str)
@pytest.mark.parametrize(
    "operation, number", [("d_key", "lse"), ("d_key", "delta"), ("d_value", "lse")]
)
def test_a_spoilt_lse_or_delta_reaches_the_keys_of_its_query_only(
    kernels: Kernels, operation: str, number: str, value: float
) -> None:
    tensors = draw(KernelSpec.parse(SMALL), (1, 6, 19, 1))
    gradient, _ = compare(kernels, operation, SMALL, tensors, spoil={number: value})
    lost = (~gradient.isfinite()).any(-1).reshape(6, 19)
    assert torch.equal(lost.nonzero().amin(0), torch.tensor([2, 4]))
    assert torch.equal(lost.nonzero().amax(0), torch.tensor([4, 6]))


# Numbers that are large or small


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
@pytest.mark.parametrize("operation", FUSED)
def test_large_scores(kernels: Kernels, operation: str, scale: float) -> None:
    """Queries and keys of up to a hundred: one probability is nearly 1 and the rest are 0."""
    tensors = draw(KernelSpec.parse(SMALL), (1, 6, 11, 1))
    tensors["query"].mul_(30.0)
    tensors["key"].mul_(30.0)
    compare(kernels, operation, SMALL, tensors, scale=scale)


def test_equal_scores_that_float16_cannot_hold(kernels: Kernels) -> None:
    tensors = draw(KernelSpec.parse(LINE), (1, 33, 1))
    tensors["query"].fill_(1e15)
    tensors["key"].fill_(1e15)
    tensors["rpb"].zero_()
    compare(kernels, "forward_lse", LINE, tensors, scale=1.0)


@pytest.mark.parametrize(
    "operation, name", [("d_query", LINE), ("d_key", INVERSE_LINE), ("d_value", INVERSE_LINE)]
)
def test_recomputed_logits_that_exceed_lse(kernels: Kernels, operation: str, name: str) -> None:
    """Huge logits differ in their last bits: the exponential of the difference is infinite."""
    tensors = draw(KernelSpec.parse(name), (1, 1, 1))
    tensors["query"].fill_(2.0**13)
    tensors["key"].fill_(2.0**13)
    tensors["rpb"].zero_()
    tensors |= {"lse": torch.full((1, 1, 1), 2.0**31 - 512), "delta": torch.zeros(1, 1, 1)}
    (result,) = run_kernel(kernels, operation, name, tensors, {}, 1.0)
    query, key, value, d_output = (tensors[n].double() for n in (*INPUTS, "d_output"))
    d_logit = (d_output * value).sum()
    expected = {"d_query": d_logit * key, "d_key": d_logit * query, "d_value": d_output}
    same(result, expected[operation].reshape(result.shape), 2e-2)


def compare_shares(result: Tensor, expected: Tensor, largest: tuple[float, float]) -> None:
    """Compare a result relative to its largest element, which lies between two numbers."""
    top = expected.abs().max()
    assert largest[0] < top < largest[1]
    same((result.double() / top).float(), expected / top, 2 * RELATIVE_TOLERANCE[result.dtype])


@pytest.mark.parametrize(
    "operation, name, columns, size, value, scale",
    [
        (operation, name, columns, *numbers)
        for operation, names, columns, small in [
            ("d_query", (SMALL, "na2d_k3x5_d32_float16"), 6, (2.0**-20, 1.0, 2.0**12)),
            ("d_key", (SMALL, SEVEN), 12, (2.0**-16, 1.0, 2.0**10)),
        ]
        for name in names
        for numbers in (small, (2.0**-10, 1.0, 1.0), (2.0**11, 64.0, 2.0**-12))
    ],
)
def test_gradients_of_logits_that_float16_cannot_hold(
    kernels: Kernels,
    operation: str,
    name: str,
    columns: int,
    size: float,
    value: float,
    scale: float,
) -> None:
    """Gradients are rounded to float16 on the way; with small or large losses they must still fit.

    With this scale, the results fit as well.
    """
    tensors = draw(KernelSpec.parse(name), (1, columns, 11, 1))
    tensors["query" if operation == "d_query" else "key"].mul_(0.25 / scale)
    tensors["value"].mul_(value)
    tensors["d_output"] = tensors["d_output"] * size
    result, expected = compare(kernels, operation, name, tensors, scale=scale, tolerance=INF)
    compare_shares(result, expected, (2.0**-10, 6e4))


def test_probabilities_that_float16_cannot_hold(kernels: Kernels) -> None:
    """A key that no query attends to much has a small gradient, with all its digits."""
    tensors = draw(KernelSpec.parse(SMALL), (1, 6, 11, 1))
    tensors["rpb"].zero_()
    tensors["query"].abs_()
    tensors["key"][0, 3, 5] = -6.0
    tensors["d_output"] = tensors["d_output"] * 2.0**12
    result, expected = compare(kernels, "d_value", SMALL, tensors, scale=0.2)
    compare_shares(result[0, 3, 5], expected[0, 3, 5], (2.0**-10, 2.0))
