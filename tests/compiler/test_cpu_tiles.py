"""Forwards in tiles of queries on CPUs, without the kernel that stands in for them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import tvm
from support.covering import covering
from support.forward_checks import check_forward
from support.special_numbers import same

from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs, inputs_of
from natc.compiler.build.cpu_code import cpu_code
from natc.compiler.build.lower import WRITTEN
from natc.compiler.cpu_tiles.placement import with_tiles
from natc.compiler.cpu_tiles.plan import KEYS, QUERIES, plan_for
from natc.compiler.cpu_tiles.shared_function import TILES, shared_function
from natc.compiler.space import all_decisions, space_for
from natc.compiler.space.cpu import tiles
from natc.errors import ScheduleError
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS, operations_of
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.targets import Target

HOST = detect_host_cpu()
SQUARE = KernelSpec.parse("na2d_k3x5_d16_float32_rpb")


def compiled(
    spec: KernelSpec, decisions: Mapping[str, int], *operations: str
) -> tvm.runtime.Executable:
    """Return forwards that have only the kernel of tiles: other calls write nothing."""
    space = space_for(HOST, "forward_lse", spec)
    assert space.name == tiles.NAME
    plan = plan_for(spec, decisions)
    functions = {TILES: shared_function(plan).with_attr(WRITTEN, True)}
    for operation in operations:
        function = space.definition(operation, spec, space.exponential)
        function = function.with_body(tvm.tirx.Evaluate(tvm.tirx.const(0)))
        function = function.with_attr("global_symbol", operation)
        functions[operation] = with_tiles(function, plan)
    return cpu_code(tvm.IRModule(functions), HOST)


@functools.cache
def kernel(spec: KernelSpec, lanes_of: int) -> Callable[..., Any]:
    """Return the kernel with the default decisions for keys or queries in lanes."""
    return compiled(spec, tiles.default_of(lanes_of, spec, HOST), "forward_lse")["forward_lse"]


@pytest.fixture(params=[KEYS, QUERIES], ids=["keys", "queries"])
def square(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return the kernel of SQUARE, once with keys and once with queries in lanes."""
    if request.param not in tiles.structure(SQUARE, HOST)["lanes_of"]:
        pytest.skip(f"{HOST.name} has no kernel with queries in lanes")
    return kernel(SQUARE, request.param)


def call(
    spec: KernelSpec,
    inputs: Inputs,
    function: Callable[..., Any],
    **options: Any,
) -> list[torch.Tensor]:
    """Return the output and the lse of a call, NaN where the kernel wrote nothing."""
    shape = inputs.query.shape[:-1]
    results = [((*shape, spec.value_dim), inputs.query.dtype), (shape, torch.float32)]
    numbers = scalars(inputs, 0.4, **options)
    return call_guarded(function, "forward_lse", inputs, results, numbers)


@pytest.mark.parametrize(
    "name, maps",
    [
        # Maps of one window, strips that just end and just begin, single rows and columns more.
        ("na2d_k3x5_d16_float32_rpb", [(3, 5), (4, 6), (7, 16), (5, 17), (6, 28), (3, 41)]),
        ("na2d_k4_d24v40_float32", [(4, 4), (5, 9), (9, 30), (4, 18)]),
        ("na2d_k3x9_d16_bfloat16_rpb", [(3, 9), (8, 37)]),
        ("na2d_k7x3_d16_float16", [(7, 3), (19, 20)]),
        ("na2d_k2x8_d16_float32_rpb", [(2, 8), (5, 11), (4, 19)]),
        ("na1d_k7_d16_float32_rpb", [(7,), (8,), (45,), (68,)]),
        ("na1d_k19_d16v32_float32", [(19,), (57,)]),
        ("na3d_k3x2x3_d16_float32_rpb", [(3, 2, 3), (4, 5, 19)]),
    ],
)
def test_maps_of_all_sizes(name: str, maps: list[tuple[int, ...]]) -> None:
    spec = KernelSpec.parse(name)
    for lanes_of in tiles.structure(spec, HOST)["lanes_of"]:
        function = kernel(spec, lanes_of)
        for sizes in maps:
            inputs = inputs_of(spec, (2, *sizes, 2))
            results = call(spec, inputs, function)
            check_forward(results, inputs, spec.kernel_size, scale=0.4)


def test_dilation_groups_are_maps_of_their_own(square: Callable[..., Any]) -> None:
    # Groups of 3 or 4 rows and of 6 or 7 columns.
    inputs = inputs_of(SQUARE, (1, 7, 20, 2))
    results = call(SQUARE, inputs, square, dilation=(2, 3))
    check_forward(results, inputs, (3, 5), scale=0.4, dilation=(2, 3))


def test_heads_that_share_keys(square: Callable[..., Any]) -> None:
    inputs = inputs_of(SQUARE, (1, 5, 9, 6), heads_kv=2)
    check_forward(call(SQUARE, inputs, square), inputs, (3, 5), scale=0.4)


@pytest.mark.parametrize(
    "name", ["na2d_k3x5_d16_float32_rpb", "na1d_k4_d24_bfloat16", "na3d_k2x3x3_d16_float32_rpb"]
)
def test_all_forwards_write_the_same_bits(name: str) -> None:
    spec = KernelSpec.parse(name)
    operations = operations_of(spec, ("forward",))
    functions = compiled(spec, tiles.default(spec, HOST), *operations)
    sizes = (5, 7, 13)[-spec.rank :]
    inputs = inputs_of(spec, (2, *sizes, 3))
    qkv = torch.stack(inputs[:3], -3)
    expected = call(spec, inputs, functions["forward_lse"], dilation=[2] * spec.rank)
    check_forward(expected, inputs, spec.kernel_size, scale=0.4, dilation=[2] * spec.rank)
    for operation in operations:
        entry = OPERATIONS[operation]
        tensors = [qkv] if entry.packed else list(inputs[:3])
        results = [(tensor.shape, tensor.dtype) for tensor in expected[: len(entry.results)]]
        actual = call_guarded(
            functions[operation], operation, [*tensors, inputs.rpb], results,
            scalars(inputs, 0.4, [2] * spec.rank),
        )  # fmt: skip
        for result, number in zip(actual, expected):
            assert torch.equal(result, number), operation


@pytest.mark.parametrize(
    "options",
    [{"stride": (1, 2)}, {"is_causal": (True, False)}, {"dilation": (2, 1)}],
    ids=str,
)
def test_calls_that_tiles_do_not_serve(
    options: dict[str, Any], square: Callable[..., Any]
) -> None:
    """With dilation 2, a group of five rows has two: fewer than a window."""
    inputs = inputs_of(SQUARE, (1, 5, 9, 1))
    results = call(SQUARE, inputs, square, **options)
    assert all(result.isnan().all() for result in results)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("tensor", ["query", "key", "value", "rpb"])
def test_numbers_beside_a_window_stay_out(
    tensor: str, number: float, square: Callable[..., Any]
) -> None:
    for at in ((0, 2, 8), (0, 0, 0), (0, 6, 18), (0, 3, 15)):
        inputs = inputs_of(SQUARE, (1, 7, 19, 1))
        spoilt = getattr(inputs, tensor)
        spoilt[(0, 1, at[2] // 3) if tensor == "rpb" else (*at, 0, 3)] = number
        output, lse = neighborhood_attention(
            *inputs[:3], (3, 5), scale=0.4, rpb=inputs.rpb, return_lse=True
        )
        actual = call(SQUARE, inputs, square)
        same(actual[0], output, 1e-5, "output")
        same(actual[1], lse, 1e-5, "lse")


def test_rows_of_logits_of_minus_infinity(square: Callable[..., Any]) -> None:
    inputs = inputs_of(SQUARE, (1, 3, 5, 1))
    inputs.rpb.fill_(-math.inf)
    output, lse = call(SQUARE, inputs, square)
    assert output.isnan().all()
    assert (lse == -math.inf).all()


@pytest.mark.parametrize(
    # With queries in lanes, fewer decisions depend on each other.
    "name, lanes_of, together",
    [("na2d_k3x10_d16_float32_rpb", KEYS, 2), ("na2d_k3x6_d16_float32_rpb", QUERIES, 1)],
)
def test_decisions_that_go_together(name: str, lanes_of: int, together: int) -> None:
    spec = KernelSpec.parse(name)
    inputs = inputs_of(spec, (1, 7, 47, 1))
    expected: list[torch.Tensor] = []
    candidates = [each for each in tiles.candidates(spec, HOST) if each["lanes_of"] == lanes_of]
    if not candidates:
        pytest.skip(f"{HOST.name} has no kernel with queries in lanes")
    for decisions in covering(candidates, together):
        results = call(spec, inputs, compiled(spec, decisions, "forward_lse")["forward_lse"])
        check_forward(results, inputs, spec.kernel_size, scale=0.4)
        # Each sum has the same order, whatever is held at once.
        expected = expected or results
        assert torch.equal(results[0], expected[0]), decisions


def test_queries_are_in_lanes_for_rows_of_few_taps() -> None:
    def lanes_of(name: str, arch: str) -> int:
        return tiles.default(KernelSpec.parse(name), Target("llvm", arch))["lanes_of"]

    for arch in ("x86-64-v3", "x86-64-v4"):
        assert lanes_of("na2d_k3_d32_float32", arch) == QUERIES
        assert lanes_of("na2d_k9x3_d32_float32", arch) == QUERIES
        assert lanes_of("na1d_k7_d32_float32", arch) == QUERIES
        assert lanes_of("na2d_k13_d32_float32", arch) == KEYS
        assert lanes_of("na1d_k9_d32_float32", arch) == KEYS
    # Lanes cannot be permuted.
    assert lanes_of("na2d_k3_d32_float32", "aarch64") == KEYS
    assert lanes_of("na2d_k3_d32_float32", "x86-64-v2") == KEYS


def test_candidates_are_many_and_the_default_is_first() -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float32_rpb")
    for arch in ("x86-64-v3", "x86-64-v4"):
        target = Target("llvm", arch)
        candidates = all_decisions(spec, target, "forward")
        assert len(candidates) >= 500
        assert candidates[0] == tiles.default(spec, target)
        assert len({tuple(each.items()) for each in candidates}) == len(candidates)


def test_every_kernel_that_the_space_covers_has_a_valid_default() -> None:
    for arch in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"):
        target = Target("llvm", arch)
        for rank in (1, 2, 3):
            for kernel_size in (1, 2, 3, 7, 13, 63):
                for head_dim in (16, 24, 64, 256):
                    spec = KernelSpec.make(kernel_size, rank=rank, head_dim=head_dim)
                    if tiles.covers(spec, target):
                        for lanes_of in tiles.structure(spec, target)["lanes_of"]:
                            default = tiles.default_of(lanes_of, spec, target)
                            assert not tiles.objection(spec, target, default), (spec, arch)


def test_decisions_that_exclude_each_other_are_refused() -> None:
    from natc.compiler.build.lower import scheduled

    target = Target("llvm", "x86-64-v3")
    with pytest.raises(ScheduleError, match="decision key_vectors is 7; the CPU has no registers"):
        scheduled(SQUARE, target, {"key_vectors": 7})
