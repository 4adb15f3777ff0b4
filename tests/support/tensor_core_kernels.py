"""Kernels for tensor cores, their CUDA source executed on the CPU, and their exact results.

A test calls the whole function, whose host code chooses between the kernel for tensor cores and
the kernel for CUDA cores.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs, inputs_of
from natc.checks.operations import Call
from natc.compiler.build import cuda
from natc.operations import OPERATIONS
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.store.schedules import joined
from natc.targets import Target
from support import brute_force
from support.emulator import Emulated, emulate_code

GPU = Target("cuda", "sm_90")

# Maps that tiles do not divide, borders, windows as large as the map, dilation groups of two
# lengths, causal axes, several heads of query for each head of key and value.
CALLS = {
    1: [
        Call((1,)),
        Call((69,), heads=3, heads_kv=1),
        Call((69,), batch=1, heads=1, heads_kv=1, is_causal=(True,)),
        Call((69,), batch=1, heads=1, heads_kv=1, dilation=(5,)),
    ],
    2: [
        Call((7, 7), heads=3, heads_kv=1),
        Call((2, 5), heads=2, heads_kv=1),
        Call((17, 19), batch=1, heads=1, heads_kv=1),
        Call((9, 21), batch=1, heads=2, heads_kv=2, dilation=(4, 2)),
        Call((9, 15), batch=1, heads=2, is_causal=(False, True)),
        Call((13, 9), batch=1, heads=1, heads_kv=1, dilation=(1, 2), is_causal=(True, False)),
    ],
    3: [
        Call((5, 6, 9), batch=1, heads=2, heads_kv=1),
        Call((2, 3, 2), heads=2, heads_kv=1),
        Call((4, 5, 9), batch=1, heads=1, heads_kv=1, is_causal=(True, False, True)),
        Call((4, 7, 9), batch=1, heads=1, heads_kv=1, dilation=(2, 1, 3)),
    ],
}


class Kernels:
    """Operations of kernels; each combination is generated once, and built once for a change."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._factory = tmp_path_factory
        self._generated: dict[object, cuda.Generated] = {}
        self._built: dict[object, Emulated] = {}

    def __call__(
        self,
        name: str,
        operations: Sequence[str],
        decisions: Mapping[str, int] | None = None,
        change: Callable[[str], str] = str,
    ) -> Emulated:
        """Return operations that share a schedule. change: applied to the CUDA source."""
        spec = KernelSpec.parse(name)
        key = spec, tuple(operations), tuple((decisions or {}).items())
        if key not in self._generated:
            joint, directory = joined(decisions or {}, operations[0]), self._directory()
            self._generated[key] = cuda.generate(spec, GPU, joint, directory, operations)
        if (key, change) not in self._built:
            code = self._generated[key]
            code = dataclasses.replace(code, source=change(code.source))
            names = {entry: function_name(spec, entry, GPU) for entry in operations}
            self._built[key, change] = emulate_code(code, names, self._directory())
        return self._built[key, change]

    def _directory(self) -> Path:
        return self._factory.mktemp("emulated")


def random_call(generator: random.Random, rank: int) -> Call:
    """Return a call without strides, of maps of up to 20 x 20, or 70 on one axis."""
    sizes = tuple(generator.randint(1, 20 if rank == 2 else 70) for _ in range(rank))
    heads_kv = generator.randint(1, 2)
    return Call(
        sizes,
        batch=generator.randint(1, 2),
        heads=heads_kv * generator.randint(1, 2),
        heads_kv=heads_kv,
        dilation=tuple(generator.randint(1, max(1, size // 2)) for size in sizes),
        is_causal=tuple(generator.random() < 0.3 for _ in sizes),
        scale=generator.choice((0.3, -0.7, 0.0)),
    )


def broken(source: str) -> str:
    """Return CUDA source whose kernel for tensor cores, and no other kernel, is wrong."""
    assert source.count("natc_exp2(") > 0
    return source.replace("natc_exp2(", "2.0f * natc_exp2(0.5f * ")


def draw(spec: KernelSpec, leading: tuple[int, ...]) -> dict[str, Tensor]:
    """Return a kernel's inputs and d_output by name; leading: batch, map and heads."""
    inputs = inputs_of(spec, leading)
    generator = torch.Generator().manual_seed(5)
    shape = (*leading, spec.value_dim)
    tensors = {name: tensor for name, tensor in inputs._asdict().items() if tensor is not None}
    d_output = torch.randn(shape, generator=generator).to(inputs.value.dtype)
    return {**tensors, "d_output": d_output}


def run(
    function: Callable[..., Any],
    operation: str,
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    scale: float,
) -> list[Tensor]:
    """Return the results of an operation; `d_rpb` is computed in three chunks."""
    results = OPERATIONS[operation].results
    query, value = tensors["query"], tensors["value"]
    shapes = {
        "output": ((*query.shape[:-1], value.shape[-1]), query.dtype),
        "lse": (query.shape[:-1], torch.float32),
        "delta": (query.shape[:-1], torch.float32),
        "correction": (query.shape[:-1], torch.float32),
        "d_query": (query.shape, query.dtype),
        "d_key": (query.shape, query.dtype),
        "d_value": (value.shape, value.dtype),
    }
    if "rpb" in tensors:
        shapes["partial"] = ((3, *tensors["rpb"].shape), torch.float32)
    passed = {"correction": torch.zeros(query.shape[:-1]), **tensors}
    inputs = [passed.get(name) for name in OPERATIONS[operation].tensors if name not in results]
    three = Inputs(query, tensors["key"], value, tensors.get("rpb"))
    tail = scalars(three, scale, **options)
    return call_guarded(function, operation, inputs, [shapes[name] for name in results], tail)


def exact(
    spec: KernelSpec, tensors: Mapping[str, Tensor], options: Mapping[str, Any], scale: float
) -> dict[str, Tensor]:
    """Return results and gradients in float64 by brute force."""
    brute_attention: Any = brute_force.attention
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    with np.errstate(invalid="ignore", over="ignore"):
        results = brute_attention(
            **arrays, kernel_size=spec.kernel_size, scale=scale, **_every(spec, options)
        )
    return {name: torch.from_numpy(np.array(array)) for name, array in results.items()}


def sums_over_pairs(
    spec: KernelSpec, tensors: Mapping[str, Tensor], options: Mapping[str, Any], scale: float
) -> dict[str, Tensor]:
    """Return d_key and d_value of each head, summed over its pairs in float64 by brute force.

    tensors: inputs, d_output, lse and delta.
    """
    query, key, value, d_output, lse, delta = (
        np.moveaxis(tensors[name].double().numpy(), 1 + spec.rank, 1)
        for name in ("query", "key", "value", "d_output", "lse", "delta")
    )
    options = {"kernel_size": spec.kernel_size, **_every(spec, options)}
    rpb = tensors["rpb"].double().numpy() if spec.rpb else None
    with np.errstate(invalid="ignore", over="ignore"):
        logits = brute_force.qk(query, key, **options, scale=scale, rpb=rpb)["attn"]
        weights = np.exp(logits - np.where(np.isinf(lse), np.nan, lse)[..., None])
        of_av = brute_force.av(weights, value, **options, d_output=d_output)
        d_logits = weights * (of_av["d_attn"] - delta[..., None])
        of_qk = brute_force.qk(query, key, **options, scale=scale, d_attn=d_logits)
    sums = {"d_key": of_qk["d_key"], "d_value": of_av["d_value"]}
    return {name: torch.from_numpy(brute_force.heads_last(x)) for name, x in sums.items()}


def _every(spec: KernelSpec, options: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return options of every axis, in the order of `support.neighbors.pairs`."""
    plain = {"dilation": 1, "stride": 1, "is_causal": False}
    return {name: options.get(name, (value,) * spec.rank) for name, value in plain.items()}
