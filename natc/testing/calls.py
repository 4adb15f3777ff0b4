"""One call of the public functions, made at random, against brute force: results and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from natc.spec import KernelSpec
from natc.testing import brute_force, magnitudes
from natc.testing.inputs import LAYOUTS, in_layout
from natc.testing.neighbors import pairs
from natc.testing.tolerance import assert_close_to_magnitude

Tensors = dict[str, Tensor]
Compute = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """What a call asks for; tensors are drawn from the seed.

    tokens: additional keys and values. layouts: of tensors by name, see `inputs.LAYOUTS`; the
    upstream gradients `d_output`, `d_lse` and `d_attn` have one as well. constant: names of
    inputs that require no gradient. without_lse: only the output is asked for.
    """

    spec: KernelSpec
    spatial: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    batch: int = 1
    heads: int = 1
    heads_kv: int = 1
    scale: float | None = None
    tokens: int = 0
    layouts: Mapping[str, str] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    without_lse: bool = False
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of query, key and value."""
        return getattr(torch, self.spec.dtype)

    @property
    def options(self) -> dict[str, Any]:
        """Where the keys of a query are: options of every function."""
        return {
            "kernel_size": self.spec.kernel_size,
            "dilation": self.dilation,
            "stride": self.stride,
            "is_causal": self.is_causal,
        }

    @property
    def factor(self) -> float:
        """The scale that None stands for."""
        return self.spec.head_dim**-0.5 if self.scale is None else self.scale


def check_fused(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise AssertionError unless attention, logsumexp and gradients are those of brute force.

    compute: takes the arguments of `natc.neighborhood_attention`, all by name.
    """
    draw = _Draw(call, device)
    channels, value_dim = call.spec.head_dim, call.spec.value_dim
    inputs = {
        "query": draw("query", (*call.spatial, call.heads, channels)),
        "key": draw("key", (*call.spatial, call.heads_kv, channels)),
        "value": draw("value", (*call.spatial, call.heads_kv, value_dim)),
        **draw.rpb(),
    }
    if call.tokens:
        inputs["additional_keys"] = draw("additional_keys", (call.tokens, call.heads_kv, channels))
        inputs["additional_values"] = draw(
            "additional_values", (call.tokens, call.heads_kv, value_dim)
        )
    upstream = {"d_output": draw("d_output", (*call.spatial, call.heads, value_dim))}
    if not call.without_lse:
        upstream["d_lse"] = draw(
            "d_lse", (*call.spatial, call.heads), getattr(torch, call.spec.accumulator)
        )
    with poisoned_results():
        found = compute(
            **inputs, **call.options, scale=call.scale, return_lse=not call.without_lse
        )
        results = (found,) if call.without_lse else found
        made = dict(zip(("output", "lse"), results))
        gradients = _gradients(call, made, inputs, upstream)
    assert made["output"].dtype == call.dtype
    if "lse" in made:
        assert made["lse"].dtype == getattr(torch, call.spec.accumulator)
    arrays = _arrays(inputs | upstream)
    options: dict[str, Any] = {**call.options, "scale": call.factor}
    expected = brute_force.attention(**arrays, **options)
    magnitude = magnitudes.attention(**arrays, **options)
    _compare(call, made | gradients, expected, magnitude)


def check_qk(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise AssertionError unless query key^T + rpb and its gradients are those of brute force.

    compute: takes the arguments of `natc.functional.na2d_qk`, all by name.
    """
    draw = _Draw(call, device)
    inputs = {
        "query": draw("query", (call.heads, *call.spatial, call.spec.head_dim)),
        "key": draw("key", (call.heads_kv, *call.spatial, call.spec.head_dim)),
        **draw.rpb(),
    }
    if call.tokens:
        inputs["additional_keys"] = draw(
            "additional_keys", (call.heads_kv, call.tokens, call.spec.head_dim)
        )
    missing = missing_taps(call)
    upstream = {"d_attn": draw("d_attn", (call.heads, *missing.shape), hole=missing)}
    with poisoned_results():
        made = {"attn": compute(**inputs, **call.options)}
        gradients = _gradients(call, made, inputs, upstream)
    assert made["attn"].dtype == call.dtype
    arrays = _arrays(inputs | upstream)
    expected = brute_force.qk(**arrays, **call.options)
    magnitude = magnitudes.linear(brute_force.qk, **arrays, **call.options)
    _compare(call, made | gradients, expected, magnitude)


def check_av(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise AssertionError unless the sum of attn times value is right, and its gradients are.

    compute: takes the arguments of `natc.functional.na2d_av`, all by name.
    """
    draw = _Draw(call, device)
    missing = missing_taps(call)
    inputs = {
        "attn": draw("attn", (call.heads, *missing.shape), hole=missing),
        "value": draw("value", (call.heads_kv, *call.spatial, call.spec.head_dim)),
    }
    if call.tokens:
        inputs["additional_values"] = draw(
            "additional_values", (call.heads_kv, call.tokens, call.spec.head_dim)
        )
    upstream = {"d_output": draw("d_output", (call.heads, *call.spatial, call.spec.head_dim))}
    with poisoned_results():
        made = {"output": compute(**inputs, **call.options)}
        gradients = _gradients(call, made, inputs, upstream)
    assert made["output"].dtype == call.dtype
    arrays = _arrays(inputs | upstream)
    expected = brute_force.av(**arrays, **call.options)
    magnitude = magnitudes.linear(brute_force.av, **arrays, **call.options)
    _compare(call, made | gradients, expected, magnitude)


def missing_taps(call: Call) -> Tensor:
    """Return which taps have no key, `[*spatial, taps + tokens]`; tokens are never missing."""
    found = pairs(call.spatial, call.spec.kernel_size, call.dilation, call.stride, call.is_causal)
    missing = torch.ones(found.positions, found.taps + call.tokens, dtype=torch.bool)
    missing[torch.from_numpy(found.query), torch.from_numpy(found.tap)] = False
    missing[:, found.taps :] = False
    return missing.unflatten(0, call.spatial)


@contextmanager
def poisoned_results() -> Iterator[None]:
    """Fill with NaN whatever memory torch hands out uninitialised; refuse what is random."""
    # Torch then does so by itself: torch.utils.deterministic.fill_uninitialized_memory.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(1).isnan()), "uninitialised memory is not filled"
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Draw:
    """Tensors of a call in their layouts; the batch axis comes first in each."""

    def __init__(self, call: Call, device: str) -> None:
        self.call, self.device = call, device
        self.generator = torch.Generator("cpu").manual_seed(call.seed)

    def __call__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
        hole: Tensor | None = None,
    ) -> Tensor:
        return self._make(name, (self.call.batch, *shape), dtype or self.call.dtype, hole)

    def rpb(self) -> Tensors:
        """Return {"rpb": a bias} in a kernel with one, else nothing."""
        if not self.call.spec.rpb:
            return {}
        shape = (self.call.heads, *(2 * size - 1 for size in self.call.spec.kernel_size))
        return {"rpb": self._make("rpb", shape, getattr(torch, self.call.spec.accumulator), None)}

    def _make(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, hole: Tensor | None
    ) -> Tensor:
        values = torch.randn(shape, generator=self.generator).to(dtype)
        tensor = in_layout(values.to(self.device), self.call.layouts.get(name, LAYOUTS[0]))
        # What is at a tap without a key must not matter. Where memory is repeated, another tap
        # would get it too.
        if hole is not None and 0 not in tensor.stride():
            tensor.masked_fill_(hole.to(self.device), math.nan)
        return tensor.requires_grad_(not name.startswith("d_") and name not in self.call.constant)


def _gradients(call: Call, made: Tensors, inputs: Tensors, upstream: Tensors) -> Tensors:
    wanted = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    if not wanted:
        return {}
    results = {f"d_{name}": result for name, result in made.items() if result.requires_grad}
    found = torch.autograd.grad(
        list(results.values()), list(wanted.values()), [upstream[name] for name in results]
    )
    for (name, tensor), gradient in zip(wanted.items(), found, strict=True):
        assert gradient.dtype == tensor.dtype and gradient.shape == tensor.shape, name
    return {f"d_{name}": gradient for name, gradient in zip(wanted, found, strict=True)}


def _arrays(tensors: Tensors) -> dict[str, Any]:
    return {name: tensor.detach().cpu().double().numpy() for name, tensor in tensors.items()}


def _compare(
    call: Call, found: Tensors, expected: dict[str, Any], magnitude: dict[str, Any]
) -> None:
    for name, result in found.items():
        of_lse = name == "lse" and call.spec.dtype != "float64"
        assert_close_to_magnitude(
            result,
            torch.from_numpy(expected[name]),
            torch.from_numpy(magnitude[name]),
            # Sums and logarithms are never rounded to 16 bits.
            torch.float32 if of_lse else call.dtype,
            name,
        )
