"""Contestants for `natc.bench.times`: natc's kernels, the reference, and torch's attention."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from natc import functional, reference, runtime
from natc.bench.problem import BenchProblem, Case, reference_bytes
from natc.bench.times import Contestant, Prepared, Unavailable, first_line
from natc.dispatch.call import Options
from natc.dispatch.fallback import NatcFallbackWarning
from natc.dispatch.sweep import is_swept
from natc.errors import NotCoveredError
from natc.operations import FORWARD, GRADIENTS, operations_of
from natc.spec import KernelSpec
from natc.window import key_position, rpb_index, window

# A dense mask of every query against every key grows with the square of the map.
MAX_MASK_BYTES = 2 * 1024**3
MAX_REFERENCE_BYTES = 8 * 1024**3

FLEX_BLOCK = 64


def from_function(function: Callable[..., Any]) -> Contestant:
    """Return a contestant that calls `function` with the arguments of `natc.na2d`."""

    def prepare(case: Case) -> Prepared:
        leaves = case.leaves()
        options = case.problem.options | {"rpb": leaves[3] if len(leaves) == 4 else None}
        call = functools.partial(function, *leaves[:3], case.problem.kernel.kernel_size, **options)
        return Prepared(call, leaves, case.d_output)

    return prepare


def from_kernel(kernel: Callable[..., Any], note: str = "") -> Contestant:
    """Return a contestant that calls a compiled forward kernel directly.

    kernel: fills output when called as `kernel(query, key, value, [rpb,] output, *scalars)`
    (`natc.operations.SCALARS`); it must be compiled for the problem's spec. Allocating output is
    part of the time. note: for the rows.
    """

    def prepare(case: Case) -> Prepared:
        problem = case.problem
        tensors = [tensor for tensor in case.inputs if tensor is not None]
        options = Options(
            problem.kernel.kernel_size, scale=problem.shape[-1] ** -0.5, **problem.options
        )
        tail = options.scalars(problem.shape[1:-2])

        def call() -> Tensor:
            output = torch.empty_like(case.inputs.query)
            kernel(*tensors, output, *tail, problem.group)
            return output

        return Prepared(call, note=note)

    return prepare


def natc_kernels(case: Case) -> Prepared:
    """natc as a program calls it: on libraries, which the first call builds if need be.

    Raises Unavailable if any part of the call would run on the reference.
    """
    spec, device = case.problem.kernel, case.inputs.query.device
    prepared = from_function(functional.neighborhood_attention)(case)
    with warnings.catch_warnings(), contextlib.suppress(NotCoveredError):
        warnings.simplefilter("ignore", NatcFallbackWarning)
        prepared.call()
    operations: tuple[str, ...] = (FORWARD,)
    if case.d_output is not None:
        swept = is_swept(spec.kernel_size, case.problem.shape[1:-2], **case.problem.options)
        swept = swept and device.type == "cpu" and _has(spec, device, GRADIENTS)
        gradients = (GRADIENTS,) if swept else operations_of(spec, ("backward",))
        operations = ("forward_lse", *gradients)
    for operation in operations:
        explanation = runtime.explain(spec, device, operation=operation)
        if explanation.choice is None:
            advice = f"; build it: {explanation.command}" if explanation.command else ""
            raise Unavailable(f"no kernel{advice}")
        prepared = replace(prepared, note=explanation.choice.target.name)
    return prepared


def _has(spec: KernelSpec, device: torch.device, operation: str) -> bool:
    """Return whether a library here has an operation."""
    return runtime.explain(spec, device, operation=operation).choice is not None


def plain(case: Case) -> Prepared:
    """The reference: it copies the keys and values of every window."""
    needed = reference_bytes(case.problem, case.problem.dtype)
    if needed > MAX_REFERENCE_BYTES:
        raise Unavailable(f"takes about {needed / 2**30:.0f} GiB")
    return from_function(reference.neighborhood_attention)(case)


def masked_sdpa(case: Case) -> Prepared:
    """`scaled_dot_product_attention` over all keys, with a mask that holds the window and bias.

    The mask and torch's own layout `[batch, heads, tokens, channels]` are made beforehand.
    """
    if case.d_output is not None and case.inputs.rpb is not None:
        raise Unavailable("its mask holds the bias, and has no gradient")
    mask = dense_mask(case)
    leaves = case.leaves(heads_first)[:3]
    options: dict[str, Any] = {"attn_mask": mask, "enable_gqa": case.problem.group > 1}
    attend: Any = torch_functional.scaled_dot_product_attention
    call = functools.partial(attend, *leaves, **options)
    return in_torch_layout(case, leaves, call, "mask made beforehand")


def flex(case: Case) -> Prepared:
    """FlexAttention with the window as block mask and the bias in `score_mod`.

    It is compiled if `torch.compile` works here; otherwise it runs uncompiled and the note says
    why. Compilation and masks are not timed. It resets `torch.compile`, which gives up after a few
    recompilations.
    """
    if case.d_output is not None and case.inputs.rpb is not None:
        raise Unavailable("the gradient of a bias that is read through tables does not compile")
    attention, options = _flex_parts(case)
    leaves = case.leaves(heads_first)[:3]

    def prepared(attend: Callable[..., Any], note: str) -> Prepared:
        return in_torch_layout(case, leaves, lambda: attend(*leaves, **options), note)

    try:
        torch._dynamo.reset()
        compiled = prepared(torch.compile(attention, dynamic=False), "compiled")
        compiled.call()
        return compiled
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch.compile fails with many types
        reason = first_line(error)
    with warnings.catch_warnings():
        # It warns that it is not compiled, as the note says.
        warnings.simplefilter("ignore")
        eager = prepared(attention, f"not compiled, because torch.compile failed ({reason})")
        eager.call()
        return eager


PEERS: dict[str, Contestant] = {
    "reference": plain,
    "torch SDPA": masked_sdpa,
    "torch FlexAttention": flex,
}


def heads_first(tensor: Tensor) -> Tensor:
    """Return a tensor of natc's layout in torch's: `[batch, heads, tokens, channels]`."""
    return tensor.flatten(1, -3).transpose(1, 2).contiguous()


def in_torch_layout(
    case: Case, leaves: list[Tensor], attend: Callable[[], Tensor], note: str
) -> Prepared:
    """Return a contestant whose tensors have torch's layout."""
    spatial = case.problem.shape[1:-2]
    return Prepared(
        attend,
        leaves,
        None if case.d_output is None else heads_first(case.d_output),
        lambda tensor: tensor.transpose(1, 2).unflatten(1, spatial),
        note,
    )


def dense_mask(case: Case) -> Tensor:
    """Return the window and the bias as a mask of every query against every key.

    Raises Unavailable if it would take more than `MAX_MASK_BYTES`.
    """
    problem = case.problem
    *_, heads, _ = problem.shape
    tokens = math.prod(problem.shape[1:-2])
    if heads * tokens**2 * problem.dtype.itemsize > MAX_MASK_BYTES:
        raise Unavailable(f"its mask of {heads} x {tokens} x {tokens} takes more than 2 GiB")
    rpb = case.inputs.rpb
    device = case.inputs.query.device
    attended = torch.ones(1, 1, dtype=torch.bool, device=device)
    index = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for (axis_attended, axis_index), kernel_size in zip(
        _axes(problem, device), problem.kernel.kernel_size, strict=True
    ):
        attended = _product(attended, axis_attended, torch.logical_and)
        index = _product(index * (2 * kernel_size - 1), axis_index, torch.add)
    if rpb is None:
        return attended
    bias = rpb.flatten(1)[:, index]
    return bias.masked_fill(~attended, -math.inf).to(problem.dtype)[None]


def _product(outer: Tensor, inner: Tensor, combine: Callable[..., Tensor]) -> Tensor:
    """Combine each entry of `outer` with all of `inner`, as a Kronecker product does."""
    combined = combine(outer[:, None, :, None], inner[None, :, None, :])
    return combined.flatten(2).flatten(0, 1)


def _axes(problem: BenchProblem, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each axis, return whether each query attends to each key, and the index into rpb.

    The index is 0 where the query does not attend to the key.
    """
    tables = []
    for length, kernel_size, dilation, stride, is_causal in zip(
        problem.shape[1:-2],
        problem.kernel.kernel_size,
        problem.dilation,
        problem.stride,
        problem.is_causal,
        strict=True,
    ):
        attended = torch.zeros(length, length, dtype=torch.bool, device="cpu")
        index = torch.zeros(length, length, dtype=torch.int64, device="cpu")
        for position in range(length):
            keys = window(
                position, length, kernel_size, dilation, stride=stride, is_causal=is_causal
            )
            for tap in range(keys.count):
                key = key_position(keys, tap, dilation)
                attended[position, key] = True
                index[position, key] = rpb_index(keys, tap, kernel_size)
        tables.append((attended.to(device), index.to(device)))
    return tables


def _flex_parts(case: Case) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return FlexAttention, and its options: the block mask and the bias.

    Raises Unavailable if torch has none.
    """
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} has no FlexAttention") from error
    problem, rpb, query = case.problem, case.inputs.rpb, case.inputs.query
    spatial = problem.shape[1:-2]
    tables = _axes(problem, query.device)

    def positions(token: Tensor) -> list[Tensor]:
        inner = [math.prod(spatial[axis + 1 :]) for axis in range(len(spatial))]
        return [token // step % size for step, size in zip(inner, spatial, strict=True)]

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        axes = zip(tables, positions(query), positions(key), strict=True)
        return functools.reduce(torch.logical_and, [table[q, k] for (table, _), q, k in axes])

    def score_mod(
        score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor
    ) -> Tensor:
        if rpb is None:
            return score
        axes = zip(tables, positions(query), positions(key), strict=True)
        index = (head, *(table[q, k] for (_, table), q, k in axes))
        return score + rpb[index]

    tokens = math.prod(spatial)
    block_mask = create_block_mask(
        mask_mod,
        *(None, None, tokens, tokens),
        device=str(query.device),
        BLOCK_SIZE=128 if query.is_cuda else FLEX_BLOCK,
    )
    options: dict[str, Any] = {"block_mask": block_mask}
    if rpb is not None:
        options["score_mod"] = score_mod
    if problem.group > 1:
        options["enable_gqa"] = True
    return flex_attention, options
