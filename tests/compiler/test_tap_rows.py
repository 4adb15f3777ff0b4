"""Gradients that read rows of taps as vectors: what lies beside a window stays out of them."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm
import tvm_ffi
from torch import Tensor

from natc import window
from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import make_inputs
from natc.compiler.build import llvm
from natc.compiler.build.lower import scheduled
from natc.compiler.space import space_for
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

pytestmark = pytest.mark.quick

HOST = detect_host_cpu()
# Vectors of 8 taps have 3 beside the window, and one from a key has 7.
SPEC = KernelSpec.parse("na2d_k3x5_d16_float32_rpb")
SIZES, HEADS, CHUNKS = (5, 13), 2, 4
GRADIENTS = ("d_query", "d_key", "d_value", "d_rpb")
OPTIONS = {
    "plain": {},
    "dilated": {"dilation": (2, 3)},
    "causal": {"is_causal": (False, True), "stride": (1, 2)},
}


@pytest.fixture(scope="module")
def kernels() -> Any:
    module = tvm.IRModule({})
    names = [function_name(SPEC, operation, HOST) for operation in GRADIENTS]
    for operation, name in zip(GRADIENTS, names):
        module.update(scheduled(SPEC, HOST, {}, operation=operation, name=name))
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "kernels.so"
        llvm.link(module, HOST, names, output, Path(scratch))
        return tvm_ffi.load_module(str(output))


def attended(options: dict[str, Any]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return the positions that each query attends to."""
    axes = []
    for axis, size in enumerate(SIZES):
        own = {name: values[axis] for name, values in options.items()}
        axes.append([window.taps(i, size, SPEC.kernel_size[axis], **own) for i in range(size)])
    return {
        (i, j): list(itertools.product(axes[0][i], axes[1][j]))
        for i, j in itertools.product(*map(range, SIZES))
    }


def offset(query: tuple[int, int], key: tuple[int, int], dilation: tuple[int, int]) -> Any:
    distances = zip(query, key, dilation, SPEC.kernel_size)
    return tuple((k // d - q // d) + size - 1 for q, k, d, size in distances)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
def test_numbers_beside_a_window_change_nothing(
    kernels: Any, options: dict[str, Any], poison: float
) -> None:
    inputs = make_inputs(
        (1, *SIZES, HEADS, SPEC.head_dim), kernel_size=SPEC.kernel_size, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {
        **inputs._asdict(),
        "d_output": torch.randn(inputs.query.shape, generator=generator),
        "lse": torch.full((1, *SIZES, HEADS), 4.0),
        "correction": torch.zeros(1, *SIZES, HEADS),
        "delta": torch.randn((1, *SIZES, HEADS), generator=generator),
    }
    tail = scalars(
        inputs, 0.25, options.get("dilation"), options.get("stride"), options.get("is_causal")
    )

    def gradients(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: call(kernels, name, tensors, tail) for name in GRADIENTS}

    pairs = attended(options)
    clean = gradients(tensors)
    assert all(bool(gradient.isfinite().all()) for gradient in clean.values())
    for token in ((0, 0), (2, 6), (4, 12), (3, 4)):
        of_keys, of_queries = dict(tensors), dict(tensors)
        for names, poisoned in ((("key", "value"), of_keys),
                                (("query", "d_output", "lse", "delta"), of_queries)):  # fmt: skip
            for name in names:
                poisoned[name] = tensors[name].clone()
                poisoned[name][0, token[0], token[1]] = poison
        by_key = [query for query, keys in pairs.items() if token in keys]
        assert_only(gradients(of_keys)["d_query"], clean["d_query"], by_key, poison)
        gradient = gradients(of_queries)
        for name in ("d_key", "d_value"):
            assert_only(gradient[name], clean[name], pairs[token], poison)
        dilation = options.get("dilation", (1, 1))
        reached = torch.zeros(clean["d_rpb"].shape[-2:], dtype=torch.bool)
        for key in pairs[token]:
            reached[offset(token, key, dilation)] = True
        total = gradient["d_rpb"].sum(0)
        assert bool(total[:, reached].isnan().all())
        assert torch.equal(total[:, ~reached], clean["d_rpb"].sum(0)[:, ~reached])


def call(kernels: Any, operation: str, tensors: dict[str, Tensor], tail: Any) -> Tensor:
    taken = OPERATIONS[operation].tensors[:-1]
    shape = (CHUNKS, *tensors["rpb"].shape) if operation == "d_rpb" else tensors["query"].shape
    function: Callable[..., Any] = kernels[function_name(SPEC, operation, HOST)]
    inputs = [tensors[name] for name in taken]
    return call_guarded(function, operation, inputs, [(shape, torch.float32)], tail)[0]


def assert_only(
    actual: Tensor, clean: Tensor, sites: list[tuple[int, int]], poison: float
) -> None:
    """Compare results with clean ones: not finite at some sites, and the same bits elsewhere."""
    reached = torch.zeros(SIZES, dtype=torch.bool)
    for site in sites:
        reached[site] = True
    assert not bool(actual[0][reached].isfinite().any()), poison
    assert torch.equal(actual[0][~reached], clean[0][~reached]), poison


def test_vectors_of_taps_are_used_if_they_are_whole() -> None:
    for name, operation, expected in (
        ("na2d_k7_d32_float32_rpb", "d_query", "llvm_blocked_gather"),
        ("na2d_k7_d32_bfloat16", "d_value", "llvm_blocked_gather"),
        ("na1d_k5_d16v24_float16_rpb", "d_rpb", "llvm_blocked_gather"),
        ("na2d_k7_d32_float32_rpb", "delta", "llvm_blocked_gather"),
        ("na2d_k7_d32_float32_rpb", "inverse_av", "llvm_gather"),
        ("na2d_k7_d32_float64", "d_query", "llvm_gather"),
        ("na2d_k7_d12_float32", "d_query", "llvm_gather"),
        ("na2d_k7_d32v5_float32", "d_key", "llvm_gather"),
        ("na1d_k4_d32_float32", "d_key", "llvm_gather"),
    ):
        for arch in ("x86-64-v2", "x86-64-v4", "aarch64"):
            space = space_for(Target("llvm", arch), operation, KernelSpec.parse(name))
            assert space.name == expected, (name, operation, arch)
