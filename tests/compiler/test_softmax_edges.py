"""NaN, infinities and very large scores pass through kernels as through torch's own operators.

Brute force sums over the keys that a query attends to and no others, with the softmax, logsumexp
and gradients of torch. An element of a kernel must be NaN or infinite as that one is, and
nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import brute_force
from support.built_kernels import BuiltKernels
from support.calls import Call, call_of, draw_fused
from support.special_numbers import same
from torch import Tensor

import natc
from natc import functional
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, Tensor]
SPECS = [
    KernelSpec.parse(name)
    for name in (
        "na2d_k3_d16_float32_rpb",
        "na2d_k3_d8_float16_rpb",
        "na2d_k3_d16_bfloat16_rpb",
        "na1d_k4_d20_float32_rpb",
        "na3d_k2_d3v5_float32_rpb",
    )
]
MAPS = {1: (11,), 2: (6, 5), 3: (3, 2, 4)}
WHERE = {
    "plain": {},
    "causal": {"is_causal": True},
    "dilated small map": {"dilation": 3},
    "stride": {"stride": 2},
}
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def small_call(spec: KernelSpec, **options: Any) -> Call:
    return call_of(spec, MAPS[spec.rank], batch=2, heads=2, heads_kv=1, **options)


class Spoil(NamedTuple):
    """A change of a tensor: of a single element, a head's bias, or most of a head's bias."""

    name: str
    value: float
    part: str = "element"

    def __call__(self, tensors: Tensors) -> None:
        tensor = tensors[self.name]
        if self.part == "element":  # away from its ends
            tensor.view(-1)[tensor.numel() // 2 + 1] = self.value
        elif self.part == "head":
            tensor[1] = self.value
        else:  # some windows have the offset that is spared, others do not
            middle = (0, *(length // 2 for length in tensor.shape[1:]))
            spared = tensor[middle].clone()
            tensor[0] = self.value
            tensor[middle] = spared


SPOILT = {
    **{
        f"{value} in {name}": Spoil(name, value)
        for name in ("query", "key", "value", "rpb")
        for value in (math.nan, math.inf, -math.inf)
        # A tap without a key has weight 0, as in attention with a mask: 0 * inf is NaN.
        if name != "value" or math.isnan(value)
    },
    "-inf in a head's rpb": Spoil("rpb", -math.inf, "head"),
    "-inf in most of rpb": Spoil("rpb", -math.inf, "most"),
    "inf in a head's rpb": Spoil("rpb", math.inf, "head"),
    "NaN upstream": Spoil("d_output", math.nan),
    "NaN upstream of lse": Spoil("d_lse", math.nan),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("spoilt", SPOILT)
@each_spec
def test_attention_of_spoilt_inputs(
    built: BuiltKernels, spec: KernelSpec, spoilt: str, where: str
) -> None:
    call = small_call(spec, **WHERE[where])
    check(built, call, SPOILT[spoilt])


@pytest.mark.parametrize(
    "spoilt", [name for name in SPOILT if "rpb" in name or "in key" in name or "in value" in name]
)
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_attention_with_tokens_of_spoilt_inputs(
    built: BuiltKernels, spec: KernelSpec, spoilt: str
) -> None:
    """A window of nothing but -inf has no weight beside the tokens, and no say."""
    check(built, small_call(spec, tokens=2), SPOILT[spoilt])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["additional_keys", "additional_values"])
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_attention_with_spoilt_tokens(
    built: BuiltKernels, spec: KernelSpec, name: str, value: float
) -> None:
    check(built, small_call(spec, tokens=2), Spoil(name, value))


def check(built: BuiltKernels, call: Call, apply: Callable[[Tensors], None]) -> None:
    built.need_attention(call.spec)
    inputs, upstream = draw_fused(call)
    with torch.no_grad():
        apply(inputs | upstream)
    results = results_of(natc.neighborhood_attention, call, inputs, upstream)
    expected = exactly(
        brute_force.attention, inputs | upstream, **call.options, scale=scale_of(call)
    )
    for name, result in results.items():
        compare(result, expected[name], call.dtype, name)


def exactly(oracle: Callable[..., Any], tensors: Tensors, **options: Any) -> Tensors:
    """Return what brute force makes of tensors, in float64."""
    arrays = {name: x.detach().double().numpy() for name, x in tensors.items()}
    with np.errstate(invalid="ignore", over="ignore"):
        results = oracle(**arrays, **options)
    return {name: torch.from_numpy(array.copy()) for name, array in results.items()}


def scale_of(call: Call) -> float:
    return call.spec.head_dim**-0.5 if call.scale is None else call.scale


def results_of(
    function: Callable[..., Any], call: Call, inputs: Tensors, upstream: Tensors
) -> Tensors:
    output, lse = function(**inputs, **call.options, scale=call.scale, return_lse=True)
    grads = torch.autograd.grad((output, lse), list(inputs.values()), list(upstream.values()))
    gradients = {f"d_{name}": x for name, x in zip(inputs, grads, strict=True)}
    return {"output": output.detach(), "lse": lse.detach(), **gradients}


def compare(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    """Compare kinds of numbers element by element, and finite ones by value."""
    same(actual, expected, 2 * RELATIVE_TOLERANCE[dtype], name)


@pytest.mark.parametrize("value", [math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("where", ["plain", "stride"])
@each_spec
def test_attention_of_infinite_values(
    built: BuiltKernels, spec: KernelSpec, where: str, value: float
) -> None:
    """Of whole windows: none of their taps is without a key."""
    check(built, small_call(spec, **WHERE[where]), Spoil("value", value))


# Very large scores


LARGE = [
    *((dtype, 1e4) for dtype in ("float32", "float16", "bfloat16")),
    *((dtype, 1e30) for dtype in ("float32", "bfloat16")),
]


@pytest.mark.parametrize("dtype, size", LARGE, ids=str)
@pytest.mark.parametrize("where", WHERE)
def test_very_large_scores(built: BuiltKernels, dtype: str, size: float, where: str) -> None:
    """A softmax of scores that far apart picks one key, in gradients as in results.

    Gradients compute scores again. At 1e30 the last bit of a score decides what its weight is:
    there gradients are only finite.
    """
    spec = KernelSpec.parse(f"na2d_k3_d8_{dtype}_rpb")
    built.need_attention(spec)
    call = small_call(spec, **WHERE[where], scale=1.0)
    inputs, upstream = draw_fused(call)
    with torch.no_grad():
        inputs["query"].mul_(size**0.5)
        inputs["key"].mul_(size**0.5)
    results = results_of(natc.neighborhood_attention, call, inputs, upstream)
    expected = exactly(brute_force.attention, inputs | upstream, **call.options, scale=1.0)
    for name, result in results.items():
        assert bool(result.isfinite().all()), f"{name} is not finite"
        if name.startswith("d_") and size > 1e4:
            continue
        # Scores are exact to float32's share of their size; so are weights, where two are near.
        rounding = max(2e-2, 8 * RELATIVE_TOLERANCE[call.dtype])
        biggest = expected[name].abs().max().item()
        if name in ("d_query", "d_key"):
            # The gradient of a score is a difference of equal numbers, times a large key.
            biggest = max(biggest, size**0.5)
        torch.testing.assert_close(
            result.double(), expected[name], rtol=rounding, atol=rounding * biggest
        )


def test_scores_that_are_equal_and_large(built: BuiltKernels) -> None:
    """All weights of a window are the same, however large the scores."""
    spec = KernelSpec.parse("na2d_k3_d8_float32_rpb")
    built.need(spec, "forward")
    query = torch.full((1, 5, 6, 1, 8), 1e15)
    value = torch.arange(240.0).view(1, 5, 6, 1, 8)
    output = natc.na2d(query, query, value, 3, scale=1.0, rpb=torch.zeros(1, 5, 5))
    expected = neighborhood_attention(torch.zeros_like(query), query, value, 3)
    torch.testing.assert_close(output, expected)


# The operators, which have no softmax: NaN and infinities where sums have them


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["query", "key", "value", "attn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operators_of_spoilt_inputs(
    built: BuiltKernels, dtype: str, name: str, value: float, where: str
) -> None:
    spec = KernelSpec.parse(f"na2d_k3_d8_{dtype}_rpb")
    built.need_operators(spec)
    call = small_call(spec, **WHERE[where])
    inputs, _ = draw_fused(call)
    tensors = {name: x.detach().movedim(-2, 1).contiguous() for name, x in inputs.items()}
    tensors["rpb"] = inputs["rpb"].detach()
    tensors["attn"] = torch.randn(2, 2, *call.spatial, 9).to(call.dtype)
    Spoil(name, value)(tensors)
    if name in ("query", "key"):
        function, oracle, kind = functional.na2d_qk, brute_force.qk, "attn"
        inputs = {key: tensors[key] for key in ("query", "key", "rpb")}
    else:
        function, oracle, kind = functional.na2d_av, brute_force.av, "output"
        inputs = {key: tensors[key] for key in ("attn", "value")}
    leaves = {key: x.requires_grad_() for key, x in inputs.items()}
    result = function(**leaves, **call.options)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(5))
    upstream = upstream.to(call.dtype)
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    expected = exactly(oracle, leaves | {f"d_{kind}": upstream}, **call.options)
    compare(result.detach(), expected[kind], call.dtype, kind)
    for key, gradient in zip(leaves, gradients, strict=True):
        compare(gradient, expected[f"d_{key}"], call.dtype, f"d_{key}")
