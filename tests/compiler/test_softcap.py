"""Soft-capped logits, softcap * tanh(logit / softcap), against a loop over pairs in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support.built_kernels import BuiltKernels
from support.neighbors import neighbors
from torch import Tensor
from torch.autograd import gradgradcheck

import natc
from natc import runtime
from natc.compiler.tensor_cores.choice import serves
from natc.errors import ArgumentError, ArgumentTypeError, SpecError
from natc.host.detect import detect_host_cpu
from natc.runtime import jit
from natc.runtime.commands import build_command
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

# For each: the map, heads of the query and of the key, and options of the call.
CASES: dict[str, tuple[tuple[int, ...], int, int, dict[str, Any]]] = {
    "na1d_k4_d3_float64_rpb_softcap": ((9,), 2, 1, {"dilation": 2, "is_causal": True}),
    "na2d_k3_d4_float64_softcap": ((4, 5), 2, 2, {"stride": 2}),
    "na2d_k3x2_d8v4_float32_rpb_softcap": ((5, 4), 4, 2, {"dilation": (1, 2), "scale": 1.0}),
    "na3d_k2_d2_float32_softcap": ((3, 2, 4), 1, 1, {"is_causal": (False, True, False)}),
    "na2d_k3_d16_bfloat16_rpb_softcap": ((5, 5), 2, 2, {"is_causal": (True, False)}),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
# The cap bends nearly all logits; some; none; and all of them reach it.
CAPS = (0.5, 5.0, 1e6, 1e-3)


def exact(
    tensors: dict[str, Tensor], spec: KernelSpec, softcap: float, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return (output, lse), one query at a time."""
    query, key, value, rpb = (tensors.get(name) for name in ("query", "key", "value", "rpb"))
    assert query is not None and key is not None and value is not None
    batch, *spatial, heads, head_dim = query.shape

    def per_axis(name: str, default: Any) -> tuple[Any, ...]:
        entry = options.get(name, default)
        return entry if isinstance(entry, tuple) else (entry,) * spec.rank

    dilation, stride, causal = (
        per_axis("dilation", 1),
        per_axis("stride", 1),
        per_axis("is_causal", False),
    )
    axes = [neighbors(*axis) for axis in zip(spatial, spec.kernel_size, dilation, stride, causal)]
    scale = options.get("scale", head_dim**-0.5)
    outputs, lses = [], []
    for b, *site in itertools.product(range(batch), *map(range, spatial)):
        for head in range(heads):
            here = (b, *site, head)
            shared = head // (heads // key.shape[-2])
            logits, values = [], []
            for near in itertools.product(*(axis[at] for axis, at in zip(axes, site))):
                offset = (head, *(end.bias for end in near))
                there = (b, *(end.position for end in near), shared)
                logit = scale * (query[here] * key[there]).sum()
                if rpb is not None:
                    logit = logit + rpb[offset]
                logits.append(softcap * torch.tanh(logit / softcap))
                values.append(value[there])
            row = torch.stack(logits)
            outputs.append(row.softmax(0) @ torch.stack(values))
            lses.append(row.logsumexp(0))
    output = torch.stack(outputs).reshape(batch, *spatial, heads, -1)
    return output, torch.stack(lses).reshape(batch, *spatial, heads)


def drawn(
    spec: KernelSpec, spatial: tuple[int, ...], heads: int, heads_kv: int, factor: float = 1.0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    dtype = getattr(torch, spec.dtype)
    sizes = {
        "query": (1, *spatial, heads, spec.head_dim),
        "key": (1, *spatial, heads_kv, spec.head_dim),
        "value": (1, *spatial, heads_kv, spec.value_dim),
    }
    tensors = {
        name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for name, size in sizes.items()
    }
    tensors["query"] *= factor
    if spec.rpb:
        offsets = (2 * k - 1 for k in spec.kernel_size)
        tensors["rpb"] = torch.randn(
            heads, *offsets, generator=generator, dtype=getattr(torch, spec.accumulator)
        )
    return tensors


def results(
    tensors: dict[str, Tensor], attention: Any, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return output, lse and every gradient, by name, as float64."""
    leaves = {
        name: torch.clone(tensor if dtype is None else tensor.to(dtype))
        for name, tensor in tensors.items()
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    output, lse = attention(leaves)
    generator = torch.Generator().manual_seed(4)
    upstream = [torch.randn(t.shape, generator=generator) for t in (output, lse)]
    torch.autograd.backward(
        (output, lse), [u.to(t.dtype) for u, t in zip(upstream, (output, lse))]
    )
    gradients = {f"d_{name}": leaf.grad for name, leaf in leaves.items()}
    every = {"output": output, "lse": lse, **gradients}
    return {name: tensor.detach().double() for name, tensor in every.items() if tensor is not None}


def compare(spec: KernelSpec, tensors: dict[str, Tensor], softcap: float, **options: Any) -> None:
    dtype = getattr(torch, spec.dtype)

    def on_kernels(leaves: dict[str, Tensor]) -> Any:
        return natc.neighborhood_attention(
            leaves["query"], leaves["key"], leaves["value"], spec.kernel_size,
            rpb=leaves.get("rpb"), softcap=softcap, return_lse=True, **options,
        )  # fmt: skip

    def looped(leaves: dict[str, Tensor]) -> Any:
        return exact(leaves, spec, softcap, options)

    expected = results(tensors, looped, torch.float64)
    actual = results(tensors, on_kernels, None)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        size = max(float(tensor.abs().max()), 1e-30)
        error = float((actual[name] - tensor).abs().max()) / size
        assert error < TOLERANCE[dtype], (name, error)


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_a_loop_over_pairs(built: BuiltKernels, name: str) -> None:
    spec = KernelSpec.parse(name)
    spatial, heads, heads_kv, options = CASES[name]
    built.need_attention(spec)
    for softcap in CAPS[:3]:
        compare(spec, drawn(spec, spatial, heads, heads_kv), softcap, **options)


def test_logits_far_beyond_the_cap(built: BuiltKernels) -> None:
    spec = KernelSpec.parse("na2d_k3_d4_float64_softcap")
    built.need_attention(spec)
    tensors = drawn(spec, (4, 5), 2, 2, factor=1e6)
    for softcap in CAPS:
        compare(spec, tensors, softcap)
    tensors["query"] *= 1e300  # exp(-2 |logit / softcap|) is 0, and nothing overflows
    output, lse = natc.na2d(
        tensors["query"], tensors["key"], tensors["value"], 3, softcap=5.0, return_lse=True
    )
    assert output.isfinite().all() and lse.abs().max() < 5 + 3


def test_a_wide_cap_is_no_cap(built: BuiltKernels) -> None:
    spec = KernelSpec.parse("na3d_k2_d2_float32_softcap")
    built.need(spec, "forward_lse")
    built.need(KernelSpec.parse("na3d_k2_d2_float32"), "forward_lse")
    query, key, value = drawn(spec, (3, 2, 4), 1, 1).values()
    plain = natc.na3d(query, key, value, 2, return_lse=True)
    for softcap in (1e4, 1e8, 1e30):
        capped = natc.na3d(query, key, value, 2, softcap=softcap, return_lse=True)
        torch.testing.assert_close(capped, plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_reference_is_differentiable_twice(is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = [(1, 3, 3, 2, 2), (1, 3, 3, 1, 2), (1, 3, 3, 1, 2), (2, 3, 3)]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]

    def attend(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Any:
        with natc.force_reference():
            return natc.na2d(
                query, key, value, 2, rpb=rpb, softcap=0.8, is_causal=is_causal, return_lse=True
            )

    assert torch.autograd.gradcheck(attend, tensors)
    assert gradgradcheck(attend, tensors, fast_mode=True)
    assert torch.autograd.gradcheck(attend, tensors, check_forward_ad=True)


def test_tokens_are_capped_too() -> None:
    spec = KernelSpec.parse("na1d_k2_d3_float64_softcap")
    tensors = drawn(spec, (4,), 1, 1)
    keys, values = tensors["key"][:, :2], tensors["value"][:, :2]
    query, key, value = tensors.values()
    with natc.force_reference():
        output = natc.na1d(
            query, key, value, 4, softcap=0.7, additional_keys=keys, additional_values=values
        )
    logits = torch.einsum("bqhd,bkhd->bhqk", query, torch.cat((key, keys), 1)) * 3**-0.5
    weights = (0.7 * (logits / 0.7).tanh()).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, torch.cat((value, values), 1))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("softcap", "error", "message"),
    [
        (0, ArgumentError, "softcap is 0; it must be 1e-30 to 1e30, or None."),
        (-3.0, ArgumentError, "softcap is -3.0; it must be 1e-30 to 1e30, or None."),
        (float("inf"), ArgumentError, "softcap is inf; it must be 1e-30 to 1e30, or None."),
        (float("nan"), ArgumentError, "softcap is nan; it must be 1e-30 to 1e30, or None."),
        (True, ArgumentTypeError, "softcap is True; it must be a number or None."),
        ("5", ArgumentTypeError, "softcap is '5'; it must be a number or None."),
    ],
)
def test_a_wrong_cap_is_refused(softcap: Any, error: type[Exception], message: str) -> None:
    query = torch.zeros(1, 4, 1, 2)
    with pytest.raises(error) as caught:
        natc.na1d(query, query, query, 3, softcap=softcap)
    assert str(caught.value) == message


def test_names_of_specs() -> None:
    plain = KernelSpec.make(7, rpb=True)
    capped = KernelSpec.make(7, rpb=True, terms=("softcap",))
    assert plain.name == "na2d_k7_d32_float32_rpb" and KernelSpec.parse(plain.name) == plain
    assert capped.name == f"{plain.name}_softcap" and KernelSpec.parse(capped.name) == capped
    for terms in (("cap",), ("softcap", "softcap"), ["softcap"]):
        with pytest.raises(SpecError, match="terms is .*softcap"):
            KernelSpec.make(7, terms=terms)  # type: ignore[arg-type]
    half = KernelSpec.make(7, dtype="float16")
    assert serves(half, "forward")
    assert not serves(KernelSpec.make(7, dtype="float16", terms=("softcap",)), "forward")


@pytest.mark.usefixtures("place")
def test_a_first_call_builds_the_capped_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setenv("NATC_LIB_PATH", "")
    jit._failures.clear()
    runtime.clear()
    spec = KernelSpec.parse("na2d_k3_d4_float32_softcap")
    assert "--terms softcap" in build_command(spec, [detect_host_cpu()])
    query = torch.randn(1, 5, 5, 1, 4)
    output = natc.na2d(query, query, query, 3, softcap=2.0)
    assert {library.spec for library in runtime.kernels()} == {spec}
    tensors = dict.fromkeys(("query", "key", "value"), query.double())
    expected, _ = exact(tensors, spec, 2.0, {})
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
