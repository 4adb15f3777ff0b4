"""Random calls, for hypothesis: every parameter, and the shapes at which kernels have broken."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from natc.spec import KernelSpec
from support.calls import Call, check_av, check_fused, check_qk
from support.guarded_calls import GuardedKernel
from support.layouts import LAYOUTS

# By rank: the longest axis of a random map. Brute force lists every pair of a query and a key.
LONGEST = {1: 90, 2: 17, 3: 7}
# Multiples of vector registers, tiles and warps, and their neighbors: where the last tile of an
# axis is full, has one query, or lacks one.
_TILES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)

_HEADS = ((1, 1), (2, 2), (3, 3), (5, 5), (2, 1), (4, 2), (6, 2), (3, 1))
_FUSED = (
    "query", "key", "value", "rpb", "additional_keys", "additional_values", "d_output", "d_lse",
)  # fmt: skip
_UNFUSED = (
    "query", "key", "attn", "value", "rpb", "additional_keys", "additional_values", "d_attn",
    "d_output",
)  # fmt: skip


def few_examples(share: int) -> Any:
    """Return the settings of a slow test: the profile's examples over `share`, at least 1."""
    return settings(
        max_examples=max(1, settings.default.max_examples // share),
        suppress_health_check=(
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.function_scoped_fixture,
        ),
    )


def without_rpb(spec: KernelSpec) -> KernelSpec:
    """Return the kernel without a bias."""
    return dataclasses.replace(spec, rpb=False)


def check_between_guards(
    kernel: GuardedKernel,
    spec: KernelSpec,
    data: st.DataObject,
    device: str = "cpu",
    *,
    unfused: bool = True,
) -> None:
    """Check a random call of a kernel's functions, each called between guards."""
    call = dataclasses.replace(data.draw(fused_calls(spec)), tokens=0, layouts={})
    check_fused(call, kernel.attention, device)
    if unfused and spec.head_dim == spec.value_dim:
        check_qk(call, kernel.qk, device)
        check_av(call, kernel.av, device)


@st.composite
def fused_calls(draw: st.DrawFn, spec: KernelSpec) -> Call:
    """Draw a call of fused attention for a kernel; see `support.calls.check_fused`."""
    inputs = ("query", "key", "value", *(("rpb",) if spec.rpb else ()))
    return _call(draw, spec, _FUSED, inputs, lse=True)


@st.composite
def unfused_calls(draw: st.DrawFn, spec: KernelSpec) -> Call:
    """Draw a call of the operators qk and av; see `support.calls.check_qk`."""
    return _call(draw, spec, _UNFUSED, ("query", "key", "value", "attn"), lse=False)


def _call(
    draw: st.DrawFn, spec: KernelSpec, names: tuple[str, ...], inputs: tuple[str, ...], lse: bool
) -> Call:
    spatial = tuple(_length(draw, spec, axis) for axis in range(spec.rank))
    heads, heads_kv = draw(st.sampled_from(_HEADS))
    usual = spec.head_dim**-0.5
    return Call(
        spec,
        spatial,
        # Up to and beyond the map, where every query is alone in its group.
        dilation=tuple(
            draw(st.one_of(st.just(1), st.integers(1, 6), st.integers(1, length + 2)))
            for length in spatial
        ),
        stride=tuple(
            draw(st.one_of(st.just(1), st.integers(1, size))) for size in spec.kernel_size
        ),
        is_causal=tuple(draw(st.booleans()) for _ in spatial),
        batch=draw(st.sampled_from((1, 2, 3, 0))),
        heads=heads,
        heads_kv=heads_kv,
        scale=draw(st.sampled_from((None, 0.0, -usual, 0.02, 1.5 * usual))),
        tokens=draw(st.sampled_from((0, 0, 1, 3, 17))),
        layouts={name: draw(st.sampled_from(LAYOUTS)) for name in names if draw(st.booleans())},
        constant=draw(st.sampled_from((*((),) * 4, *((name,) for name in inputs), inputs[1:]))),
        without_lse=lse and draw(st.sampled_from((False, False, True))),
        packed=lse
        and heads == heads_kv
        and spec.head_dim == spec.value_dim
        and draw(st.sampled_from((False, True))),
        seed=draw(st.integers(0, 2**16)),
    )


def _length(draw: st.DrawFn, spec: KernelSpec, axis: int) -> int:
    size, longest = spec.kernel_size[axis], LONGEST[spec.rank]
    # Around the kernel's own size too; smaller, it is the window that is larger than the map.
    chosen = {*_TILES, size - 1, size, size + 1, 2 * size + 1}
    special = sorted(length for length in chosen if 1 <= length <= 1.5 * longest)
    return draw(st.one_of(st.integers(1, longest), st.sampled_from(special)))
