"""Launching a kernel: aligned inputs, tensors of a size that it can index, its device current.

`natc.operations` defines what kernels compute and the order of their tensors. Arguments are
checked in `natc.functional`, not here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, get_num_threads

from natc.dispatch.fork import call_alone, misses_its_threads
from natc.errors import ArgumentError
from natc.operations import HEADS_FIRST, OPERATIONS
from natc.runtime.load import Kernel

# Kernels compute memory offsets in 32 bits.
MOST_ELEMENTS = 2**31 - 1

# Kernels for CPUs first copy the keys and values that taps read (`natc.compiler.space.cpu.rows`).
# One launch gets at most so many elements of the query, so that the copies stay in caches and in
# the memory that `launcher/threads.c` keeps.
COPIED_TOGETHER = 2**18

# Tensors with heads_kv heads, and tensors without a batch.
_OF_KEYS = frozenset(("key", "value"))
_WITHOUT_BATCH = frozenset(("rpb", "partial", "d_rpb"))
_COPYING = frozenset(
    name
    for name, operation in OPERATIONS.items()
    if operation.family == "forward" or name in ("d_query", "d_key", "d_value")
)


def launch(
    kernel: Kernel,
    operation: str,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    scalars: tuple[Any, ...],
    group: int,
    extra: tuple[Any, ...] = (),
) -> None:
    """Run a kernel on inputs and write its results; in parts if a tensor is too large for it.

    Args:
        inputs: in the kernel's order, none empty; not contiguous or not aligned ones are copied.
        results: contiguous, in the kernel's dtypes.
        scalars: from `Options.scalars`.
        group: heads of the query that share a head of key and value.
        extra: scalars after the group.

    Raises:
        ArgumentError: one head of one entry of the batch is too large.
    """
    alignment = kernel.alignment
    readable = []
    for tensor in inputs:
        if tensor.numel() > MOST_ELEMENTS:
            return _in_parts(kernel, operation, inputs, results, scalars, group, extra)
        # A load from a pointer that is not aligned crashes the process.
        fits = tensor.is_contiguous() and not tensor.data_ptr() % alignment
        readable.append(tensor if fits else ready(tensor, alignment))
    for tensor in results:
        if tensor.numel() > MOST_ELEMENTS:
            return _in_parts(kernel, operation, inputs, results, scalars, group, extra)
    first = results[0]
    if first.is_cuda:
        arguments = (*readable, *results, *scalars, group, *extra)
        if first.device.index == torch.cuda.current_device():
            kernel.function(*arguments)
        else:
            # A launch makes the tensors' device current and does not restore the other.
            with torch.cuda.device(first.device):
                kernel.function(*arguments)
    elif readable[0].numel() > COPIED_TOGETHER and operation in _COPYING and len(readable[0]) > 1:
        tail = (*scalars, group, *extra)
        for part in _few_entries(operation, (*readable, *results), alignment):
            launch_on_cpu(kernel, (*part, *tail))
    else:
        launch_on_cpu(kernel, (*readable, *results, *scalars, group, *extra))


def launch_on_cpu(kernel: Kernel, arguments: tuple[Any, ...]) -> None:
    """Call a kernel's function with torch's number of threads; alone in a fork.

    arguments: the function's arguments; it can read and write their tensors in place.
    """
    if misses_its_threads():
        call_alone(kernel.function, arguments)
    else:
        # OpenMP has a number of threads for each calling thread: this sets it to torch's.
        get_num_threads()
        kernel.function(*arguments)


def _few_entries(
    operation: str, tensors: Sequence[Tensor], alignment: int
) -> Iterator[list[Tensor]]:
    """Yield contiguous, aligned tensors in aligned parts of a few entries of the batch each."""
    cut = [name not in _WITHOUT_BATCH for name in _names(operation, len(tensors))]
    first = tensors[0]  # query; or qkv, which is three times as large
    batch = len(first)
    entries = [t.numel() // batch * t.itemsize for t, flag in zip(tensors, cut) if flag]
    step = math.lcm(*(alignment // math.gcd(alignment, entry) for entry in entries))
    elements = first.numel() // (3 if OPERATIONS[operation].packed else 1)
    together = COPIED_TOGETHER * batch // elements
    for start, length in _ranges(batch, max(together // step, 1) * step):
        yield [t.narrow(0, start, length) if flag else t for t, flag in zip(tensors, cut)]


def ready(tensor: Tensor, alignment: int) -> Tensor:
    """Return a tensor that is contiguous and aligned: the same, or else a copy."""
    tensor = tensor.contiguous()
    if tensor.data_ptr() % alignment:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _in_parts(
    kernel: Kernel,
    operation: str,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    scalars: tuple[Any, ...],
    group: int,
    extra: tuple[Any, ...],
) -> None:
    """Call `launch` on parts of the batch; on parts of the heads if an entry is too large."""
    tensors = (*inputs, *results)
    names = _names(operation, len(tensors))
    axes = [_heads_axis(name, operation) for name in names]
    batch = inputs[0].shape[0]
    heads = inputs[0].shape[axes[0]]

    def run(slices: list[tuple[int, int, int] | None], group: int) -> None:
        parts = [t if cut is None else t.narrow(*cut) for t, cut in zip(tensors, slices)]
        written = parts[len(inputs) :]
        # A part of a result may be neither contiguous nor aligned.
        fresh = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in written]
        launch(kernel, operation, parts[: len(inputs)], fresh, scalars, group, extra)
        for name, result, part in zip(names[len(inputs) :], written, fresh):
            # A result without a batch is a sum over it; it began as zeros, and parts add to it.
            if name in _WITHOUT_BATCH:
                result.add_(part)
            else:
                result.copy_(part)

    for name, result in zip(names[len(inputs) :], results):
        if name in _WITHOUT_BATCH:
            result.zero_()
    shared = any(t.numel() > MOST_ELEMENTS for t, n in zip(tensors, names) if n in _WITHOUT_BATCH)
    entry = max(t.numel() // batch for t, n in zip(tensors, names) if n not in _WITHOUT_BATCH)
    if entry <= MOST_ELEMENTS and not shared:
        for start, length in _ranges(batch, MOST_ELEMENTS // entry):
            run([None if n in _WITHOUT_BATCH else (0, start, length) for n in names], group)
        return

    def of_heads(first: int, number: int, group: int) -> list[tuple[int, int, int] | None]:
        """Return (axis, start, length) for each tensor; first, number: heads of the query."""
        first_kv = first * heads_kv // heads
        return [
            (axis, first_kv, number // group) if n in _OF_KEYS else (axis, first, number)
            for n, axis in zip(names, axes)
        ]

    heads_kv = heads // group
    # Elements of a head, in an entry of the batch.
    each = {
        name: t.numel() // t.shape[axis] // (1 if name in _WITHOUT_BATCH else batch)
        for name, t, axis in zip(names, tensors, axes)
    }
    largest = max(each, key=lambda name: each[name])
    most = MOST_ELEMENTS // max(n * (1 if name in _OF_KEYS else group) for name, n in each.items())
    if most > 0:
        for start, length in _ranges(heads_kv, most):
            run(of_heads(start * group, length * group, group), group)
    elif each[largest] <= MOST_ELEMENTS:
        for head in range(heads_kv):
            for start, length in _ranges(group, MOST_ELEMENTS // each[largest]):
                run(of_heads(head * group + start, length, length), length)
    else:
        shape = list(tensors[names.index(largest)].shape)
        raise ArgumentError(
            f"{largest} has shape {shape}, {each[largest]} elements in one head of one entry of "
            f"the batch; a kernel takes at most {MOST_ELEMENTS}."
        )


def _ranges(length: int, step: int) -> list[tuple[int, int]]:
    """Return ranges of at most `step` that cover 0 .. length-1, each as (start, length)."""
    return [(start, min(step, length - start)) for start in range(0, length, step)]


@functools.cache
def _names(operation: str, number: int) -> tuple[str, ...]:
    """Return the operation's tensor names, without the bias's tensors if a call passes fewer."""
    entry = OPERATIONS[operation]
    return entry.tensors_of(rpb=len(entry.tensors) == number)


def _heads_axis(name: str, operation: str) -> int:
    """Return the axis of the heads in an operation's tensor."""
    if name in ("rpb", "d_rpb"):
        return 0
    if name == "partial" or OPERATIONS[operation].layout == HEADS_FIRST:
        return 1
    return -1 if name in ("lse", "d_lse", "delta", "correction") else -2
