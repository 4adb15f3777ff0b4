"""Derivatives of natc's functions against finite differences, in float64 on compiled kernels.

Reverse, forward and second-order, for every option of every rank. Results and first gradients are
a kernel's; natc may compute the rest from its reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.built_kernels import BuiltKernels
from support.calls import Call, call_of, draw_av, draw_fused, draw_qk, missing_taps
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import natc
from natc import functional
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

# For each rank: without a bias; with one, where kernel sizes are even or differ; and a value of
# other channels than the key.
SPECS = [
    KernelSpec.parse(name)
    for name in (
        "na1d_k3_d3_float64",
        "na1d_k4_d2_float64_rpb",
        "na1d_k5_d1v2_float64_rpb",
        "na2d_k3_d2_float64",
        "na2d_k3x2_d3_float64_rpb",
        "na2d_k2x3_d2v1_float64",
        "na3d_k3x2x2_d2_float64",
        "na3d_k2x3x2_d1_float64_rpb",
        "na3d_k2_d1v2_float64",
    )
]
WITH_OPERATORS = [spec for spec in SPECS if spec.value_dim == spec.head_dim]
# Channels that no vector register divides, at one option each.
OTHER_CHANNELS = [
    KernelSpec.parse(name) for name in ("na1d_k2_d20_float64", "na2d_k2_d12_float64_rpb")
]

# The map of each rank, and the options of a call on every axis.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"maps": ((7,), (4, 5), (3, 3, 2))},
    "dilation": {"maps": ((8,), (4, 7), (3, 4, 3)), "dilation": 2},  # not divisible
    "stride": {"maps": ((7,), (5, 4), (3, 4, 2)), "stride": 2},
    "causal": {"maps": ((6,), (4, 3), (2, 3, 3)), "is_causal": True},
    "small map": {"maps": ((2,), (2, 1), (1, 2, 1))},
    "shared heads": {"maps": ((5,), (3, 3), (2, 3, 2)), "heads": 4, "heads_kv": 2},
    "tokens": {"maps": ((5,), (3, 3), (2, 3, 2)), "tokens": 2},
    "everything": {
        "maps": ((9,), (4, 5), (3, 2, 4)),
        "dilation": 2, "stride": 2, "is_causal": True, "heads": 2, "heads_kv": 1, "tokens": 1,
        "scale": -0.6,
    },
}  # fmt: skip


def option_call(spec: KernelSpec, option: str) -> Call:
    """Return the call of an option; the second of two axes has default options."""
    options = dict(OPTIONS[option])
    spatial = options.pop("maps")[spec.rank - 1]
    for name, default in (("dilation", 1), ("is_causal", False)):
        value = options.get(name, default)
        options[name] = tuple(default if axis == 1 else value for axis in range(spec.rank))
    return call_of(spec, spatial, seed=3, **options)


def fused(built: BuiltKernels, call: Call) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Return natc's attention of a call as a function of its tensors, and the tensors."""
    built.need_attention(call.spec)
    inputs, _ = draw_fused(call)

    def compute(*tensors: Tensor) -> Any:
        arguments = dict(zip(inputs, tensors, strict=True))
        return natc.neighborhood_attention(
            **arguments, **call.options, scale=call.scale, return_lse=True
        )

    return compute, plain(inputs)


def operator(
    built: BuiltKernels, call: Call, name: str
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Return natc's operator `qk` or `av` of a call as a function of its tensors, and these."""
    built.need_operators(call.spec)
    inputs, _ = (draw_qk if name == "qk" else draw_av)(call)
    function = getattr(functional, f"na{call.spec.rank}d_{name}")
    missing = missing_taps(call)

    def compute(*tensors: Tensor) -> Any:
        result = function(**dict(zip(inputs, tensors, strict=True)), **call.options)
        # Taps without a key are -inf, and differences of infinities are NaN.
        return result.masked_fill(missing, 0.0) if name == "qk" else result

    return compute, plain(inputs)


def plain(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return leaves without the NaN that taps without a key hold."""
    return tuple(x.detach().nan_to_num(0.0).clone().requires_grad_() for x in inputs.values())


each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
each_with_operators = pytest.mark.parametrize("spec", WITH_OPERATORS, ids=str)
each_option = pytest.mark.parametrize("option", OPTIONS)
each_operator = pytest.mark.parametrize("name", ["qk", "av"])


def check_first(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
    """Check every entry of gradients that kernels compute, and random directions of the others."""
    # Not even the last bit may differ between two runs: nondet_tol is 0.
    assert gradcheck(function, inputs)
    assert gradcheck(
        function, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


@each_option
@each_spec
def test_gradcheck_of_attention(built: BuiltKernels, spec: KernelSpec, option: str) -> None:
    check_first(*fused(built, option_call(spec, option)))


@each_option
@each_spec
def test_gradgradcheck_of_attention(built: BuiltKernels, spec: KernelSpec, option: str) -> None:
    function, inputs = fused(built, option_call(spec, option))
    forward_too = option == "everything"
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=forward_too)


@pytest.mark.parametrize("spec", OTHER_CHANNELS, ids=str)
def test_gradcheck_of_other_channels(built: BuiltKernels, spec: KernelSpec) -> None:
    call = dataclasses.replace(option_call(spec, "plain"), spatial=(4, 3)[: spec.rank])
    for function, inputs in (
        fused(built, call),
        operator(built, call, "qk"),
        operator(built, call, "av"),
    ):
        check_first(function, inputs)
        assert gradgradcheck(function, inputs, fast_mode=True)


@each_operator
@each_option
@each_with_operators
def test_gradcheck_of_operators(
    built: BuiltKernels, spec: KernelSpec, option: str, name: str
) -> None:
    check_first(*operator(built, option_call(spec, option), name))


@each_operator
@each_option
@each_with_operators
def test_gradgradcheck_of_operators(
    built: BuiltKernels, spec: KernelSpec, option: str, name: str
) -> None:
    function, inputs = operator(built, option_call(spec, option), name)
    forward_too = option == "everything"
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=forward_too)


def test_gradcheck_of_merged_attentions() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    outputs = [draw(1, 3, 2, 2) for _ in range(3)]
    lses = [draw(1, 3, 2) for _ in range(3)]

    def merge(*tensors: Tensor) -> Any:
        return natc.merge_attentions(tensors[:3], tensors[3:])

    assert gradcheck(merge, (*outputs, *lses), check_forward_ad=True)
    assert gradgradcheck(merge, (*outputs, *lses))
