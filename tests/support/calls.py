"""One call of the public functions, made at random, against brute force: results and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from natc.checks.tolerance import check_close
from natc.spec import KernelSpec
from support import brute_force, magnitudes
from support.layouts import LAYOUTS, in_layout
from support.neighbors import pairs

Tensors = dict[str, Tensor]
Compute = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """The options and shapes of a call; its tensors are drawn from the seed.

    tokens: additional keys and values. layouts: of tensors by name, see `support.layouts`; the
    upstream gradients `d_output`, `d_lse` and `d_attn` have one as well. constant: names of
    inputs that require no gradient. without_lse: only the output is asked for. packed: query, key
    and value of fused attention lie in one tensor, `[batch, *spatial, 3, heads, head_dim]`.
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
    packed: bool = False
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of query, key and value."""
        dtype: torch.dtype = getattr(torch, self.spec.dtype)
        return dtype

    @property
    def options(self) -> dict[str, Any]:
        """Where the keys of a query are: options of every function."""
        return {
            "kernel_size": self.spec.kernel_size,
            "dilation": self.dilation,
            "stride": self.stride,
            "is_causal": self.is_causal,
        }


def call_of(spec: KernelSpec, spatial: tuple[int, ...], **options: Any) -> Call:
    """Return a call; dilation, stride and is_causal may be one value for all axes."""
    for name, default in (("dilation", 1), ("stride", 1), ("is_causal", False)):
        value = options.get(name, default)
        options[name] = value if isinstance(value, tuple) else (value,) * spec.rank
    return Call(spec, spatial, **options)


def check_fused(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise CheckError unless attention, logsumexp and gradients agree with brute force.

    compute: takes the arguments of `natc.neighborhood_attention`, all by name.
    """
    inputs, upstream = draw_fused(call, device)
    options: dict[str, Any] = {**call.options, "scale": call.scale}
    with poisoned_results():
        results_of_call = compute(**inputs, **options, return_lse=not call.without_lse)
        results = (results_of_call,) if call.without_lse else results_of_call
        named = dict(zip(("output", "lse"), results))
        gradients = _gradients(named, inputs, upstream)
    assert named["output"].dtype == call.dtype
    if "lse" in named:
        assert named["lse"].dtype == _accumulator(call.spec)
    arrays = _arrays(inputs | upstream)
    options["scale"] = call.spec.head_dim**-0.5 if call.scale is None else call.scale
    expected = brute_force.attention(**arrays, **options)
    magnitude = magnitudes.attention(**arrays, **options)
    _compare(call, named | gradients, expected, magnitude)


def check_qk(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise CheckError unless query key^T + rpb and its gradients agree with brute force.

    compute: takes the arguments of `natc.functional.na2d_qk`, all by name.
    """
    inputs, upstream = draw_qk(call, device)
    _check_linear(call, compute, brute_force.qk, "attn", inputs, upstream)


def check_av(call: Call, compute: Compute, device: str = "cpu") -> None:
    """Raise CheckError unless attn times value and its gradients agree with brute force.

    compute: takes the arguments of `natc.functional.na2d_av`, all by name.
    """
    inputs, upstream = draw_av(call, device)
    _check_linear(call, compute, brute_force.av, "output", inputs, upstream)


def draw_fused(call: Call, device: str = "cpu") -> tuple[Tensors, Tensors]:
    """Return the inputs of fused attention by name, and the upstream gradients of its results."""
    draw = _Draw(call, device)
    channels, value_dim = call.spec.head_dim, call.spec.value_dim
    inputs = {
        "query": draw("query", *call.spatial, call.heads, channels),
        "key": draw("key", *call.spatial, call.heads_kv, channels),
        "value": draw("value", *call.spatial, call.heads_kv, value_dim),
        **draw.rpb(),
    }
    if call.packed:
        inputs |= _packed(inputs)
    if call.tokens:
        tokens = (call.tokens, call.heads_kv)
        inputs["additional_keys"] = draw("additional_keys", *tokens, channels)
        inputs["additional_values"] = draw("additional_values", *tokens, value_dim)
    upstream = {"d_output": draw("d_output", *call.spatial, call.heads, value_dim)}
    if not call.without_lse:
        of_lse = _accumulator(call.spec)
        upstream["d_lse"] = draw("d_lse", *call.spatial, call.heads, dtype=of_lse)
    return inputs, upstream


def draw_qk(call: Call, device: str = "cpu") -> tuple[Tensors, Tensors]:
    """Return the inputs of the operator qk by name, and the upstream gradient of its result."""
    draw = _Draw(call, device)
    inputs = {
        "query": draw("query", call.heads, *call.spatial, call.spec.head_dim),
        "key": draw("key", call.heads_kv, *call.spatial, call.spec.head_dim),
        **draw.rpb(),
    }
    if call.tokens:
        shape = (call.heads_kv, call.tokens, call.spec.head_dim)
        inputs["additional_keys"] = draw("additional_keys", *shape)
    return inputs, {"d_attn": draw.weights("d_attn")}


def draw_av(call: Call, device: str = "cpu") -> tuple[Tensors, Tensors]:
    """Return the inputs of the operator av by name, and the upstream gradient of its result."""
    draw = _Draw(call, device)
    inputs = {
        "attn": draw.weights("attn"),
        "value": draw("value", call.heads_kv, *call.spatial, call.spec.head_dim),
    }
    if call.tokens:
        shape = (call.heads_kv, call.tokens, call.spec.head_dim)
        inputs["additional_values"] = draw("additional_values", *shape)
    return inputs, {"d_output": draw("d_output", call.heads, *call.spatial, call.spec.head_dim)}


def missing_taps(call: Call) -> Tensor:
    """Return which taps have no key, `[*spatial, taps + tokens]`; tokens are never missing."""
    ends = pairs(call.spatial, call.spec.kernel_size, call.dilation, call.stride, call.is_causal)
    missing = torch.ones(ends.positions, ends.taps + call.tokens, dtype=torch.bool)
    missing[torch.from_numpy(ends.query), torch.from_numpy(ends.tap)] = False
    missing[:, ends.taps :] = False
    return missing.unflatten(0, call.spatial)


@contextmanager
def poisoned_results() -> Iterator[None]:
    """Let torch fill uninitialised memory with NaN and refuse operators that are random."""
    # See torch.utils.deterministic.fill_uninitialized_memory.
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

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self._leaf(name, self._laid_out(name, (self.call.batch, *shape), dtype))

    def rpb(self) -> Tensors:
        """Return {"rpb": a bias} in a kernel with one, else nothing."""
        spec = self.call.spec
        if not spec.rpb:
            return {}
        shape = (self.call.heads, *(2 * size - 1 for size in spec.kernel_size))
        return {"rpb": self._leaf("rpb", self._laid_out("rpb", shape, _accumulator(spec)))}

    def weights(self, name: str) -> Tensor:
        """Return one number for each head, query, and tap or token."""
        missing = missing_taps(self.call).to(self.device)
        shape = (self.call.batch, self.call.heads, *missing.shape)
        tensor = self._laid_out(name, shape, None)
        # The number at a tap without a key must not matter. In a layout that repeats memory,
        # another tap would get the NaN as well.
        if bool(missing.any()) and 0 not in tensor.stride():
            tensor.masked_fill_(missing, math.nan)
        return self._leaf(name, tensor)

    def _laid_out(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
        values = torch.randn(shape, generator=self.generator).to(dtype or self.call.dtype)
        return in_layout(values.to(self.device), self.call.layouts.get(name, LAYOUTS[0]))

    def _leaf(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.requires_grad_(not name.startswith("d_") and name not in self.call.constant)


def _packed(inputs: Tensors) -> Tensors:
    """Return query, key and value as parts of one tensor, as one linear layer makes them."""
    parted = {name: inputs[name] for name in ("query", "key", "value")}
    parts = torch.stack([tensor.detach() for tensor in parted.values()], dim=-3).unbind(-3)
    return {
        name: part.requires_grad_(tensor.requires_grad)
        for (name, tensor), part in zip(parted.items(), parts, strict=True)
    }


def _check_linear(
    call: Call,
    compute: Compute,
    oracle: Compute,
    result: str,
    inputs: Tensors,
    upstream: Tensors,
) -> None:
    """Check an operator that is linear in each of its tensors."""
    with poisoned_results():
        named = {result: compute(**inputs, **call.options)}
        gradients = _gradients(named, inputs, upstream)
    assert named[result].dtype == call.dtype
    arrays = _arrays(inputs | upstream)
    expected = oracle(**arrays, **call.options)
    magnitude = magnitudes.linear(oracle, **arrays, **call.options)
    _compare(call, named | gradients, expected, magnitude)


def _gradients(results_by_name: Tensors, inputs: Tensors, upstream: Tensors) -> Tensors:
    """Return the gradients of the inputs that require one."""
    wanted = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    results = {
        f"d_{name}": result for name, result in results_by_name.items() if result.requires_grad
    }
    if not wanted:
        assert not results
        return {}
    gradients = torch.autograd.grad(
        list(results.values()), list(wanted.values()), [upstream[name] for name in results]
    )
    for (name, tensor), gradient in zip(wanted.items(), gradients, strict=True):
        assert gradient.dtype == tensor.dtype and gradient.shape == tensor.shape, name
    return {f"d_{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def _accumulator(spec: KernelSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.accumulator)
    return dtype


def _arrays(tensors: Tensors) -> dict[str, Any]:
    return {name: tensor.detach().cpu().double().numpy() for name, tensor in tensors.items()}


def _compare(
    call: Call, actual: Tensors, expected: dict[str, Any], magnitude: dict[str, Any]
) -> None:
    for name, result in actual.items():
        of_lse = name == "lse" and call.spec.dtype != "float64"
        check_close(
            result,
            torch.from_numpy(expected[name]),
            # Sums and logarithms are never rounded to 16 bits.
            torch.float32 if of_lse else call.dtype,
            name,
            terms64=torch.from_numpy(magnitude[name]),
        )
