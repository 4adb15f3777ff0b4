"""The gradients of keys and values on tensor cores, their CUDA source executed on the CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.neighbors import pairs
from support.special_numbers import same
from support.tensor_core_kernels import (
    CALLS,
    GPU,
    WHERE,
    Kernels,
    assert_refused,
    assert_served_without_strides,
    assert_serves,
    assert_without_choice,
    call_by_chance,
    drawn,
    exact,
    spoilt,
)
from torch import Tensor

from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs
from natc.checks.operations import Call, check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.compiler.space import space_for
from natc.spec import KernelSpec

BOTH = ("d_key", "d_value")
each = pytest.mark.parametrize("operation", BOTH)


SMALL = "na2d_k3_d16_float16_rpb"
LINE, SOLID = "na1d_k23_d32v64_bfloat16_rpb", "na3d_k2x3x4_d16v48_float16_rpb"


@pytest.mark.parametrize(
    "name", [SMALL, "na2d_k7_d32_float16_rpb", LINE, SOLID, "na3d_k1x3x1_d16_bfloat16_rpb"]
)
def test_gradients(kernels: Kernels, name: str) -> None:
    spec, library = KernelSpec.parse(name), kernels(name, BOTH)
    for call in CALLS[spec.rank]:
        check_operations(library.__getitem__, spec, call, BOTH)


@each
def test_blocks_of_warps_and_of_channels(kernels: Kernels, operation: str) -> None:
    """Channels in blocks of 64, 32 and 16; an even window, of another size on each axis."""
    name = "na2d_k10x4_d112v80_bfloat16"
    decisions = {"tensor_cores": 1, "warps_0": 2, "warps_1": 2, "resident_warps": 8}
    spec, library = KernelSpec.parse(name), kernels(name, (operation,), decisions)
    for call in CALLS[2]:
        check_operations(library.__getitem__, spec, call, (operation,))


@pytest.mark.parametrize("sizes", [(7, 28), (8, 13), (14, 6), (13, 16), (28, 9), (3, 41)], ids=str)
def test_keys_at_borders(kernels: Kernels, sizes: tuple[int, int]) -> None:
    """More queries attend to them than to others, up to all of the map's."""
    name = "na2d_k7_d32_float16_rpb"
    call = Call(sizes, batch=1, heads=2, heads_kv=1)
    check_operations(kernels(name, BOTH).__getitem__, KernelSpec.parse(name), call, BOTH)


@pytest.mark.parametrize("name", [SMALL, LINE])
def test_calls_by_chance(kernels: Kernels, name: str) -> None:
    spec, chance, library = KernelSpec.parse(name), random.Random(name), kernels(name, BOTH)
    for seed in range(8):
        call = call_by_chance(chance, spec.rank)
        check_operations(library.__getitem__, spec, call, BOTH, seed=seed)


def test_two_runs_give_the_same_bits(kernels: Kernels) -> None:
    """In whichever order threads run."""
    spec, library = KernelSpec.parse(SMALL), kernels(SMALL, BOTH)
    check_operations(library.in_orders, spec, Call((9, 21), dilation=(2, 1)), BOTH)


# Which kernel is launched


def test_tensor_cores_serve_calls_without_strides(kernels: Kernels) -> None:
    assert_served_without_strides(kernels, BOTH)


@each
def test_tensor_cores_come_first_where_nothing_is_tuned_and_both_are_searched(
    operation: str,
) -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float16_rpb")
    assert space_for(GPU, operation, spec).structure(spec, GPU)["tensor_cores"] == (1, 0)
    cases: list[tuple[dict[str, int], bool]] = [
        ({}, True),
        ({"sums": 32}, False),  # of before there was a choice
        ({"sums": 64, "tensor_cores": 1}, True),
        ({"tensor_cores": 0}, False),
    ]
    assert_serves(spec.name, operation, cases)


@each
@pytest.mark.parametrize("name", ["na2d_k7_d32_float32", "na2d_k7_d24_float16", "na1d_k3_d16v144"])
def test_kernels_without_tensor_cores(name: str, operation: str) -> None:
    spec = KernelSpec.parse(name if "float" in name else f"{name}_float16")
    assert_without_choice(spec.name, operation, "cuda_gather")


@each
def test_decisions_are_checked(operation: str) -> None:
    cases: list[tuple[dict[str, int], str]] = [
        ({"tensor_cores": 2}, "tensor_cores is 2; space cuda_gather allows 0, 1"),
        ({"tensor_cores": 1, "warps_0": 3}, "warps_0 is 3; space cuda_gather allows 4, 2, 1"),
        ({"tensor_cores": 1, "products": 8}, "products is not of space cuda_gather"),
        ({"tensor_cores": 0, "warps_1": 2}, "warps_1 is not of space cuda_gather"),
    ]
    assert_refused("na2d_k7_d32_float16", operation, cases)


# NaN and infinities, of queries that attend to a key and of others


SPOILT = [*spoilt("query", "key", "value", "d_output"), ("query", -math.inf)]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("tensor, value", SPOILT, ids=str)
def test_spoilt_inputs(kernels: Kernels, tensor: str, value: float, where: str) -> None:
    """A number that is not finite is seen by the keys of its queries, and no others."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 9, 19, 1))
    flat = (d_output if tensor == "d_output" else getattr(inputs, tensor)).view(-1)
    flat[flat.numel() // 2 + 1] = value
    for operation in BOTH:
        found, expected = compare(kernels, SMALL, operation, inputs, d_output, WHERE[where])
        assert bool(found.isfinite().any()) == bool(expected.isfinite().any())


@each
@pytest.mark.parametrize("name, sizes", [(LINE, (77,)), (SOLID, (5, 6, 19))])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_spoilt_queries_of_other_ranks(
    kernels: Kernels, name: str, sizes: tuple[int, ...], value: float, operation: str
) -> None:
    inputs, d_output = drawn(KernelSpec.parse(name), (1, *sizes, 1))
    spoilt = inputs.query if operation == "d_key" else d_output
    spoilt.view(-1)[spoilt.numel() // 2 + 1] = value
    found, _ = compare(kernels, name, operation, inputs, d_output, {})
    assert found.isfinite().any() and not found.isfinite().all()


@each
def test_every_query_of_a_row_is_infinite(kernels: Kernels, operation: str) -> None:
    """Tiles of which some keys have only finite queries, and others infinities of both signs."""
    inputs, d_output = drawn(KernelSpec.parse(SMALL), (1, 9, 18, 2))
    spoilt = inputs.query if operation == "d_key" else d_output
    spoilt[:, 4, ::2, :, 3] = math.inf
    spoilt[:, 4, 1::2, :, 3] = -math.inf
    spoilt[:, 6, :, :, 8] = math.nan
    compare(kernels, SMALL, operation, inputs, d_output, {})


@each
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_windows_of_nothing_else(kernels: Kernels, value: float, operation: str) -> None:
    """Whose logsumexp is not finite."""
    inputs, d_output = drawn(KernelSpec.parse(SMALL), (1, 6, 11, 2))
    assert inputs.rpb is not None
    inputs.rpb[1] = value
    compare(kernels, SMALL, operation, inputs, d_output, {})


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
@pytest.mark.parametrize("which", ["lse", "delta"])
def test_logsumexp_and_delta_that_are_not_finite(
    kernels: Kernels, which: str, value: float
) -> None:
    """Of one query: the keys that it attends to have no gradient, and others have theirs."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 6, 19, 1))
    for operation in BOTH:
        if which in TAKES[operation]:
            found, _ = compare(
                kernels, SMALL, operation, inputs, d_output, {}, spoil=(which, value)
            )
            lost = (~found.isfinite()).any(-1).reshape(6, 19)
            assert torch.equal(lost.nonzero().amin(0), torch.tensor([2, 4]))
            assert torch.equal(lost.nonzero().amax(0), torch.tensor([4, 6]))


# Numbers that are large or small


@each
@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_scores_that_are_large(kernels: Kernels, scale: float, operation: str) -> None:
    """Queries and keys of up to a hundred: a weight of nearly 1 and others of 0."""
    inputs, d_output = drawn(KernelSpec.parse(SMALL), (1, 6, 11, 1))
    inputs.query.mul_(30.0)
    inputs.key.mul_(30.0)
    compare(kernels, SMALL, operation, inputs, d_output, {}, scale=scale)


@each
def test_logits_made_anew_that_exceed_the_logsumexp(kernels: Kernels, operation: str) -> None:
    """By the last bits of huge numbers, whose exponential would be infinite."""
    inputs, d_output = drawn(KernelSpec.parse(LINE), (1, 1, 1))
    assert inputs.rpb is not None
    inputs.query.fill_(2.0**13)
    inputs.key.fill_(2.0**13)
    inputs.rpb.zero_()
    numbers = {"lse": torch.full((1, 1, 1), 2.0**31 - 512), "delta": torch.zeros(1, 1, 1)}
    found = call(kernels, LINE, operation, inputs, d_output, numbers, {}, 1.0)
    expected = d_output.double()
    if operation == "d_key":
        expected = (expected * inputs.value.double()).sum() * inputs.query.double()
    same(found, expected.reshape(found.shape), 2e-2)


@pytest.mark.parametrize(
    "size, value, scale",
    [(2.0**-16, 1.0, 2.0**10), (2.0**-10, 1.0, 1.0), (2.0**11, 64.0, 2.0**-12)],
)
@pytest.mark.parametrize("name", [SMALL, "na2d_k7_d32_float16_rpb"])
def test_gradients_that_float16_cannot_hold_on_the_way(
    kernels: Kernels, name: str, size: float, value: float, scale: float
) -> None:
    """Gradients of logits are rounded to float16; those of small or large losses still fit.

    With the scale chosen here, the gradient of the key fits as well.
    """
    inputs, d_output = drawn(KernelSpec.parse(name), (1, 12, 11, 1))
    inputs.key.mul_(0.25 / scale)
    inputs.value.mul_(value)
    found, expected = compare(
        kernels, name, "d_key", inputs, d_output * size, {}, scale=scale, tolerance=math.inf
    )
    largest = expected.abs().max()
    assert 2.0**-10 < largest < 6e4
    same(
        (found.double() / largest).float(), expected / largest, 2 * RELATIVE_TOLERANCE[found.dtype]
    )


def test_weights_that_float16_cannot_hold(kernels: Kernels) -> None:
    """A key that nobody attends to much has a small gradient, with all its digits."""
    inputs, d_output = drawn(KernelSpec.parse(SMALL), (1, 6, 11, 1))
    assert inputs.rpb is not None
    inputs.rpb.zero_()
    inputs.query.abs_()
    inputs.key[0, 3, 5] = -6.0
    found, expected = compare(kernels, SMALL, "d_value", inputs, d_output * 2.0**12, {}, scale=0.2)
    largest = expected[0, 3, 5].abs().max()
    assert 2.0**-10 < largest < 2.0
    same(
        (found[0, 3, 5].double() / largest).float(),
        expected[0, 3, 5] / largest,
        2 * RELATIVE_TOLERANCE[found.dtype],
    )


TAKES = {
    "d_key": ("query", "key", "value", "rpb", "d_output", "lse", "delta"),
    "d_value": ("query", "key", "rpb", "d_output", "lse"),
}


def call(
    kernels: Kernels,
    name: str,
    operation: str,
    inputs: Inputs,
    d_output: Tensor,
    numbers: Mapping[str, Tensor],
    options: Mapping[str, Any],
    scale: float,
) -> Tensor:
    """Return the gradient that a kernel computes."""
    every = {**inputs._asdict(), "d_output": d_output, **numbers}
    like = inputs.key if operation == "d_key" else inputs.value
    (found,) = call_guarded(
        kernels(name, BOTH)[operation],
        operation,
        [every[tensor] for tensor in TAKES[operation]],
        [(tuple(like.shape), like.dtype)],
        scalars(inputs, scale, **options),
    )
    return found


def compare(
    kernels: Kernels,
    name: str,
    operation: str,
    inputs: Inputs,
    d_output: Tensor,
    options: Mapping[str, tuple[Any, ...]],
    *,
    scale: float = 0.25,
    spoil: tuple[str, float] | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a gradient and what sums over pairs make it, once these are compared.

    spoil: what the number of the query in the middle of rows, and at 5 of columns, is instead.
    """
    spec = KernelSpec.parse(name)
    forward = exact(spec, inputs, options, scale=scale)
    delta = (d_output.double() * forward["output"]).sum(-1)
    numbers = {"lse": forward["lse"].float(), "delta": delta.float()}
    if spoil is not None:
        numbers[spoil[0]][0, d_output.shape[1] // 2, 5, 0] = spoil[1]
    found = call(kernels, name, operation, inputs, d_output, numbers, options, scale)
    expected = summed(spec, inputs, d_output, numbers, options, scale)[operation]
    limit = 2 * RELATIVE_TOLERANCE[found.dtype] if tolerance is None else tolerance
    same(found, expected, limit)
    return found, expected


def summed(
    spec: KernelSpec,
    inputs: Inputs,
    d_output: Tensor,
    numbers: Mapping[str, Tensor],
    options: Mapping[str, Any],
    scale: float,
) -> dict[str, Tensor]:
    """Return both gradients, added up over the pairs of each head in float64."""
    rank, sizes = spec.rank, inputs.query.shape[1:-2]
    plain = {"dilation": 1, "stride": 1, "is_causal": False}
    found = pairs(
        sizes, spec.kernel_size, *(options.get(n, (value,) * rank) for n, value in plain.items())
    )
    results = {"d_key": np.zeros(inputs.key.shape), "d_value": np.zeros(inputs.value.shape)}
    with np.errstate(invalid="ignore", over="ignore"):
        for head in range(inputs.query.shape[-2]):

            def rows(tensor: Tensor, head: int = head) -> Any:
                return tensor[0, ..., head, :].double().numpy().reshape(math.prod(sizes), -1)

            q, k, v, d_o = map(rows, (*inputs[:3], d_output))
            lse, delta = (rows(numbers[n][..., None])[found.query, 0] for n in ("lse", "delta"))
            logits = scale * (q[found.query] * k[found.key]).sum(-1)
            if inputs.rpb is not None:
                logits = logits + inputs.rpb[head].double().numpy().ravel()[found.bias]
            weights = np.exp(logits - np.where(np.isinf(lse), np.nan, lse))
            d_logits = weights * ((d_o[found.query] * v[found.key]).sum(-1) - delta)
            sums = {"d_key": np.zeros(k.shape), "d_value": np.zeros(v.shape)}
            np.add.at(sums["d_key"], found.key, scale * d_logits[:, None] * q[found.query])
            np.add.at(sums["d_value"], found.key, weights[:, None] * d_o[found.query])
            for name, total in sums.items():
                results[name][0, ..., head, :] = total.reshape(*sizes, -1)
    return {name: torch.from_numpy(array) for name, array in results.items()}
