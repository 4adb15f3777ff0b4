"""Launching one kernel: inputs that it can read, sizes that it can count, the device it runs on.

What a kernel computes, and the order of its tensors, is in `natc.operations`. Nothing here checks
arguments; `natc.functional` does.
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

# Kernels compute positions in memory in 32 bits.
MOST_ELEMENTS = 2**31 - 1

# A CPU's kernels first copy the keys and values that taps read (`natc.compiler.space.cpu.rows`).
# They get so few elements at a time that the copies stay in caches, and in the memory that
# `launcher/threads.c` keeps.
COPIED_TOGETHER = 2**18

# Tensors with one head for each of the query's `group`, and those without a batch.
_OF_KEYS = frozenset(("key", "value"))
_WITHOUT_BATCH = frozenset(("rpb", "partial"))
_COPYING = frozenset(
    name
    for name, found in OPERATIONS.items()
    if found.family == "forward" or name in ("d_query", "d_key", "d_value")
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
    """Run a kernel, in parts where a tensor is too large for it.

    inputs: in the kernel's order, none of them empty; what it cannot read as it is, is copied.
    results: compact, of the kernel's dtypes; they are written. scalars: of `Options.scalars`.
    group: heads of the query for each one of key and value. extra: scalars after the group.
    Raises ArgumentError where one head of one entry of the batch is too large.
    """
    alignment = kernel.alignment
    given = []
    for tensor in inputs:
        if tensor.numel() > MOST_ELEMENTS:
            return _in_parts(kernel, operation, inputs, results, scalars, group, extra)
        # A kernel assumes the alignment in its loads; a pointer that breaks it ends the process.
        fits = tensor.is_contiguous() and not tensor.data_ptr() % alignment
        given.append(tensor if fits else ready(tensor, alignment))
    for tensor in results:
        if tensor.numel() > MOST_ELEMENTS:
            return _in_parts(kernel, operation, inputs, results, scalars, group, extra)
    first = results[0]
    if first.is_cuda:
        arguments = (*given, *results, *scalars, group, *extra)
        if first.device.index == torch.cuda.current_device():
            kernel.function(*arguments)
        else:
            # Launching makes the tensors' device current and would leave it so.
            with torch.cuda.device(first.device):
                kernel.function(*arguments)
    elif given[0].numel() > COPIED_TOGETHER and operation in _COPYING:
        tail = (*scalars, group, *extra)
        for part in _few_entries(operation, (*given, *results), alignment):
            _on_cpu(kernel, (*part, *tail))
    else:
        _on_cpu(kernel, (*given, *results, *scalars, group, *extra))


def _on_cpu(kernel: Kernel, arguments: tuple[Any, ...]) -> None:
    if misses_its_threads():
        call_alone(kernel.function, arguments)
    else:
        # OpenMP counts its threads in each thread apart: this hands torch's number to this one.
        get_num_threads()
        kernel.function(*arguments)


def _few_entries(
    operation: str, tensors: Sequence[Tensor], alignment: int
) -> Iterator[list[Tensor]]:
    """Cut compact, aligned tensors into aligned parts of a few entries of the batch."""
    cut = [name not in _WITHOUT_BATCH for name in _names(operation, len(tensors))]
    first = tensors[0]  # query, or it is a third of it
    batch = len(first)
    entries = [t.numel() // batch * t.itemsize for t, flag in zip(tensors, cut) if flag]
    step = math.lcm(*(alignment // math.gcd(alignment, entry) for entry in entries))
    elements = first.numel() // (3 if OPERATIONS[operation].packed else 1)
    together = COPIED_TOGETHER * batch // elements
    for start, length in _ranges(batch, max(together // step, 1) * step):
        yield [t.narrow(0, start, length) if flag else t for t, flag in zip(tensors, cut)]


def ready(tensor: Tensor, alignment: int) -> Tensor:
    """Return a tensor as a kernel takes it, compact and aligned: itself, or else a copy."""
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
    """Run a kernel on parts of the batch, or else of the heads, each of which may have parts."""
    tensors = (*inputs, *results)
    names = _names(operation, len(tensors))
    axes = [_heads_axis(name, operation) for name in names]
    batch = inputs[0].shape[0]
    heads = inputs[0].shape[axes[0]]

    def run(slices: list[tuple[int, int, int] | None], group: int) -> None:
        parts = [t if cut is None else t.narrow(*cut) for t, cut in zip(tensors, slices)]
        written = parts[len(inputs) :]
        # A part of a result may be neither compact nor aligned.
        fresh = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in written]
        launch(kernel, operation, parts[: len(inputs)], fresh, scalars, group, extra)
        for name, result, found in zip(names[len(inputs) :], written, fresh):
            # Sums over the batch: they began as zeros, and parts of the batch add to them.
            if name in _WITHOUT_BATCH:
                result.add_(found)
            else:
                result.copy_(found)

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
        """Heads of the query, and those of key and value that they use."""
        first_kv = first * heads_kv // heads
        return [
            (axis, first_kv, number // group) if n in _OF_KEYS else (axis, first, number)
            for n, axis in zip(names, axes)
        ]

    heads_kv = heads // group
    # Elements of one head, in one entry of the batch.
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
    """Cut 0 .. length-1 into ranges of at most `step`, each as (start, length)."""
    return [(start, min(step, length - start)) for start in range(0, length, step)]


@functools.cache
def _names(operation: str, number: int) -> tuple[str, ...]:
    """Return the names of an operation's tensors, of which a call has that number."""
    names = OPERATIONS[operation].tensors
    return names if len(names) == number else tuple(name for name in names if name != "rpb")


def _heads_axis(name: str, operation: str) -> int:
    if name == "rpb":
        return 0
    if name == "partial" or OPERATIONS[operation].layout == HEADS_FIRST:
        return 1
    return -1 if name in ("lse", "delta") else -2
