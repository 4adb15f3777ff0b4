"""Random calls of the reference against brute force: what kernels are compared with elsewhere.

More cases, and new ones at each run: `pytest -k sweep --hypothesis-profile=natc-long`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.calls import call_of, check_av, check_fused, check_qk
from support.sweep import fused_calls, unfused_calls

from natc.errors import CheckError
from natc.reference import neighborhood_attention, neighborhood_logits, neighborhood_sum
from natc.spec import KernelSpec

SPECS = [
    KernelSpec.parse(name)
    for name in (
        "na1d_k63_d1_float32",
        "na1d_k2_d256_bfloat16_rpb",
        "na1d_k16_d12v5_float16_rpb",
        "na1d_k5_d20_float64",
        "na2d_k7_d32_float32_rpb",
        "na2d_k4x5_d24_bfloat16",
        "na2d_k13x2_d3v64_float64_rpb",
        "na3d_k3_d12_float16",
        "na3d_k2x3x4_d20_float32_rpb",
    )
]
FEW = max(1, settings.default.max_examples // 10)
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


@each_spec
@settings(max_examples=FEW, suppress_health_check=SLOW)
@given(data=st.data())
def test_sweep_of_attention(spec: KernelSpec, data: st.DataObject) -> None:
    check_fused(data.draw(fused_calls(spec)), neighborhood_attention)


@each_spec
@settings(max_examples=FEW, suppress_health_check=SLOW)
@given(data=st.data())
def test_sweep_of_the_operators(spec: KernelSpec, data: st.DataObject) -> None:
    call = data.draw(unfused_calls(spec))
    check_qk(call, logits_heads_first)
    check_av(call, sums_heads_first)


def logits_heads_first(
    query: torch.Tensor, key: torch.Tensor, rpb: Any = None, additional_keys: Any = None, **o: Any
) -> torch.Tensor:
    logits = neighborhood_logits(
        query.movedim(1, -2),
        key.movedim(1, -2),
        rpb=rpb,
        additional_keys=None if additional_keys is None else additional_keys.movedim(1, -2),
        scale=1.0,
        **o,
    )
    return logits.movedim(-2, 1).to(query.dtype)


def sums_heads_first(
    attn: torch.Tensor, value: torch.Tensor, additional_values: Any = None, **o: Any
) -> torch.Tensor:
    sums = neighborhood_sum(
        attn.movedim(1, -2),
        value.movedim(1, -2),
        additional_values=None if additional_values is None else additional_values.movedim(1, -2),
        **o,
    )
    return sums.movedim(-2, 1)


def test_the_sweep_sees_mistakes() -> None:
    """A kernel might make each of these mistakes."""
    spec = KernelSpec.parse("na2d_k3_d4_float32_rpb")
    call = call_of(spec, (5, 6), heads=4, heads_kv=2, tokens=2, batch=2)

    def wrong(**changes: Any) -> Any:
        def compute(**arguments: Any) -> Any:
            return neighborhood_attention(**arguments | changes)

        return compute

    check_fused(call, neighborhood_attention)
    for changes in ({"scale": 0.51}, {"dilation": 2}, {"is_causal": True}, {"stride": 2}):
        with pytest.raises(CheckError, match=r"^output: relative error"):
            check_fused(call, wrong(**changes))

    def shifted_lse(**arguments: Any) -> Any:
        output, lse = neighborhood_attention(**arguments)
        return output, lse + 1e-3

    with pytest.raises(CheckError, match=r"^lse: relative error"):
        check_fused(call, shifted_lse)

    def detached(**arguments: Any) -> Any:
        value = arguments.pop("value")
        # Half of the gradient of value is lost, nothing else.
        return neighborhood_attention(**arguments, value=0.5 * value + 0.5 * value.detach())

    with pytest.raises(CheckError, match=r"^d_value: relative error"):
        check_fused(call, detached)

    def unwritten(**arguments: Any) -> Any:
        output, lse = neighborhood_attention(**arguments)
        left_out = torch.empty_like(output)
        return torch.cat((output[:, :4], left_out[:, 4:]), 1), lse

    with pytest.raises(CheckError, match=r"^output: \d+ of \d+ elements are NaN"):
        check_fused(call, unwritten)
