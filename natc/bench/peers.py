"""Contestants for `natc.bench.times`: natc's kernels, the reference, and what torch offers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from natc import reference
from natc.bench.times import BenchProblem, Contestant, Prepared, Unavailable
from natc.dispatch.launch import scalars
from natc.window import key_position, rpb_index, window

# A dense mask of every query against every key grows with the square of the map.
MAX_MASK_BYTES = 2 * 1024**3

FLEX_BLOCK = 64


def from_function(function: Callable[..., Any], note: str = "") -> Contestant:
    """Return a contestant that calls `function` with the arguments of `natc.na2d`."""

    def prepare(inputs: BenchProblem) -> Prepared:
        def call() -> Tensor:
            return function(
                inputs.query,
                inputs.key,
                inputs.value,
                inputs.kernel_size,
                dilation=inputs.dilation,
                rpb=inputs.rpb,
            )

        return Prepared(call, note)

    return prepare


def from_kernel(kernel: Callable[..., Any], note: str = "") -> Contestant:
    """Return a contestant that calls a compiled forward kernel directly.

    Args:
        kernel: fills output when called as `kernel(query, key, value, [rpb,] output, *scalars)`
            (`natc.operations.SCALARS`); it must be compiled for the problems' kernel size, head
            dim, dtype and presence of rpb. Allocating output is part of what is timed.
        note: what the rows say about it.
    """

    def prepare(inputs: BenchProblem) -> Prepared:
        tensors = [inputs.query, inputs.key, inputs.value]
        if inputs.rpb is not None:
            tensors.append(inputs.rpb)
        _, *sizes, _, head_dim = inputs.query.shape
        tail = scalars(head_dim**-0.5, sizes, inputs.dilation, (1, 1), (False, False))
        group = 1

        def call() -> Tensor:
            output = torch.empty_like(inputs.query)
            kernel(*tensors, output, *tail, group)
            return output

        return Prepared(call, note)

    return prepare


reference_contestant = from_function(reference.neighborhood_attention)


def sdpa_contestant(inputs: BenchProblem) -> Prepared:
    """`scaled_dot_product_attention` over all keys, with a mask that holds the window and rpb.

    The mask and torch's own layout `[batch, heads, height*width, head_dim]` are made beforehand.
    """
    _, height, width, _, _ = inputs.query.shape
    masked = mask(inputs)
    query, key, value = (_heads_first(t) for t in (inputs.query, inputs.key, inputs.value))

    def call() -> Tensor:
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=masked)
        return _heads_last(output, height, width)

    return Prepared(call, "mask made beforehand")


def mask(inputs: BenchProblem) -> Tensor:
    """Return the window and rpb as a mask of every query against every key.

    Raises Unavailable where it would take more than `MAX_MASK_BYTES`.
    """
    _, height, width, heads, _ = inputs.query.shape
    tokens = height * width
    if heads * tokens**2 * inputs.query.element_size() > MAX_MASK_BYTES:
        raise Unavailable(f"its mask of {heads} x {tokens} x {tokens} takes more than 2 GiB")
    attended, bias = _dense(inputs)
    if bias is None:
        return attended
    return bias.masked_fill(~attended, float("-inf")).to(inputs.query.dtype)


def flex_contestant(inputs: BenchProblem) -> Prepared:
    """FlexAttention with the window as block mask and rpb in `score_mod`.

    It is compiled if `torch.compile` works here; otherwise it runs uncompiled and the note says
    why. The block mask, the layout and the compilation are done beforehand. Earlier results of
    `torch.compile` in this process are forgotten, because it gives up after a few recompilations.
    """
    _, height, width, _, _ = inputs.query.shape
    flex_attention, block_mask, score_mod = flex_parts(inputs)
    tensors = [_heads_first(t) for t in (inputs.query, inputs.key, inputs.value)]

    def with_(attention: Callable[..., Any]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            output = attention(*tensors, score_mod=score_mod, block_mask=block_mask)
            return _heads_last(output, height, width)

        return call

    try:
        torch._dynamo.reset()
        call = with_(torch.compile(flex_attention, dynamic=False))
        call()
        return Prepared(call, "compiled")
    except Exception as error:  # torch.compile fails with many types; every one means "cannot"
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
    with warnings.catch_warnings():
        # It warns that it is not compiled, which the note says.
        warnings.simplefilter("ignore")
        call = with_(flex_attention)
        try:
            call()
        except (RuntimeError, NotImplementedError) as error:
            raise Unavailable(f"FlexAttention failed: {str(error).splitlines()[0]}") from error
    return Prepared(call, f"not compiled, because torch.compile failed ({reason})")


def flex_parts(
    inputs: BenchProblem,
) -> tuple[Callable[..., Any], Any, Callable[..., Tensor] | None]:
    """Return FlexAttention, the window as its block mask, and rpb as its change of scores.

    Raises Unavailable where torch has none.
    """
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} has no FlexAttention") from error
    _, height, width, _, _ = inputs.query.shape
    tokens = height * width
    (rows_attended, rows_index), (columns_attended, columns_index) = _axes(inputs)
    rpb = inputs.rpb

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows = rows_attended[query // width, key // width]
        return rows & columns_attended[query % width, key % width]

    def score_mod(
        score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor
    ) -> Tensor:
        if rpb is None:
            return score
        row = rows_index[query // width, key // width]
        return score + rpb[head, row, columns_index[query % width, key % width]]

    block_mask = create_block_mask(
        mask_mod,
        None,
        None,
        tokens,
        tokens,
        device=str(inputs.query.device),
        BLOCK_SIZE=128 if inputs.query.is_cuda else FLEX_BLOCK,
    )
    return flex_attention, block_mask, None if rpb is None else score_mod


def torch_peers() -> dict[str, Contestant]:
    """Return what `torch` alone offers for the same problem, by the name that tables show."""
    return {
        "reference": reference_contestant,
        "torch SDPA": sdpa_contestant,
        "torch FlexAttention": flex_contestant,
    }


def _axes(inputs: BenchProblem) -> list[tuple[Tensor, Tensor]]:
    """For each axis: which key each query attends to, and the index into rpb (0 elsewhere)."""
    tables = []
    for axis in range(2):
        length = inputs.query.shape[1 + axis]
        kernel_size, dilation = inputs.kernel_size[axis], inputs.dilation[axis]
        attended = torch.zeros(length, length, dtype=torch.bool, device="cpu")
        index = torch.zeros(length, length, dtype=torch.int64, device="cpu")
        for position in range(length):
            found = window(position, length, kernel_size, dilation)
            for tap in range(found.count):
                key = key_position(found, tap, dilation)
                attended[position, key] = True
                index[position, key] = rpb_index(found, tap, kernel_size)
        device = inputs.query.device
        tables.append((attended.to(device), index.to(device)))
    return tables


def _dense(inputs: BenchProblem) -> tuple[Tensor, Tensor | None]:
    """Return attended `[tokens, tokens]` and the bias `[1, heads, tokens, tokens]` or None."""
    (rows, rows_index), (columns, columns_index) = _axes(inputs)
    tokens = inputs.query.shape[1] * inputs.query.shape[2]
    attended = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(tokens, tokens)
    if inputs.rpb is None:
        return attended, None
    bias = inputs.rpb[:, rows_index[:, None, :, None], columns_index[None, :, None, :]]
    return attended, bias.reshape(1, -1, tokens, tokens)


def _heads_first(tensor: Tensor) -> Tensor:
    batch, height, width, heads, head_dim = tensor.shape
    heads_first = tensor.permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, head_dim)
    return heads_first.contiguous()


def _heads_last(tensor: Tensor, height: int, width: int) -> Tensor:
    batch, heads, _, head_dim = tensor.shape
    return tensor.view(batch, heads, height, width, head_dim).permute(0, 2, 3, 1, 4)
