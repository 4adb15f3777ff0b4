"""The gradients of fused attention: on kernels if they cover the call, else on the reference.

Kernels recompute the probabilities from query, key and the logsumexp, so that nothing of the size
of queries times taps is kept. If several heads of the query share a key, a kernel computes the
key's gradient for each of them, and torch sums these, as it sums the chunks of the bias's
gradient. So every sum has one order, and two runs give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from natc import reference
from natc.dispatch.call import Options
from natc.dispatch.fallback import as_new, find, report
from natc.dispatch.launch import launch, ready
from natc.dispatch.sweep import can_hold, run_sweep, sweep_kernel
from natc.operations import chunks_of
from natc.reference.backward import of_group
from natc.reference.layout import accumulator, without_autocast
from natc.runtime.load import Kernel

GRADIENTS = ("d_query", "d_key", "d_value", "d_rpb")


def backward(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    options: Options,
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value and rpb, contiguous, in the dtypes of these.

    Args:
        d_output, d_lse: gradients of the results; a d_lse of None stands for zeros.
        output, lse: the results.
        wanted: four flags; a gradient that is not wanted, or of an rpb that is None, is an empty
            tensor.
        query, key, value, rpb, options: as for `fused_forward.run`, which raises the same errors.
    """
    variables = (query, key, value, rpb)
    names = [n for n, t, flag in zip(GRADIENTS, variables, wanted) if flag and t is not None]
    if not names:
        return _complete((None,) * len(variables), wanted, query)
    if len(names) > 1 and query.numel():
        kernel = sweep_kernel(query, value, rpb, lse, d_lse, options)
        if kernel is not None:
            swept = run_sweep(kernel, query, key, value, rpb, d_output, d_lse, options)
            return _complete(swept, wanted, query)
    kernels = _kernels(names, query, rpb, value, options) if query.numel() else None
    if kernels is None:
        saved = (query, key, value, rpb, output, lse)
        return tuple(map(as_new, composed(d_output, d_lse, *saved, wanted, options)))
    tensors = (query, key, value, output, lse, d_output)
    gradients = _on_kernels(kernels, tensors, d_lse, rpb, options)
    return _complete(gradients, wanted, query)


def backward_packed(
    d_output: Tensor,
    d_lse: Tensor | None,
    qkv: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qkv and rpb, as `backward` does for the parts of qkv.

    wanted: two flags. A sweep reads the parts and writes their gradients in place.
    """
    query, key, value = qkv.unbind(-3)
    of_qkv, of_rpb = wanted
    if of_qkv and qkv.numel():
        kernel = sweep_kernel(query, value, rpb, lse, d_lse, options)
        if kernel is not None:
            d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
            results = d_qkv.unbind(-3)
            if all(can_hold(result, kernel.alignment) for result in results):
                *_, d_rpb = run_sweep(
                    kernel, query, key, value, rpb, d_output, d_lse, options, results
                )
                if d_rpb is None or not of_rpb:
                    d_rpb = qkv.new_empty(0)
                return d_qkv, d_rpb
    return packed_by_parts(backward, d_output, d_lse, qkv, rpb, output, lse, wanted, options)


def packed_by_parts(
    run: Callable[..., tuple[Tensor, ...]],
    d_output: Tensor,
    d_lse: Tensor | None,
    qkv: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return what `backward_packed` returns, with copies of the parts; run: as `backward`."""
    of_qkv, of_rpb = wanted
    flags = [of_qkv] * 3 + [of_rpb]
    *of_parts, d_rpb = run(d_output, d_lse, *qkv.unbind(-3), rpb, output, lse, flags, options)
    return torch.stack(of_parts, -3) if of_qkv else qkv.new_empty(0), d_rpb


def composed(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    options: Options,
) -> tuple[Tensor, ...]:
    """Return the gradients of `backward` by the reference: differentiable, to any order.

    output and lse are recomputed from query, key, value and rpb, so that the gradients' own
    derivatives include the path through them.
    """
    if query.numel() == 0:
        zeros = [None if t is None else torch.zeros_like(t) for t in (query, key, value, rpb)]
        return _complete(zeros, wanted, query)
    on_map = options.within(query.shape[1:-2], rpb=rpb)
    # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
    with without_autocast(query.device):
        gradients = reference.neighborhood_gradients(
            query, key, value, d_output=d_output, d_lse=d_lse, rpb=rpb, wanted=wanted,
            **on_map._asdict(),
        )  # fmt: skip
    return _complete(gradients, wanted, query)


def second_gradients(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    directions: Sequence[Tensor | None],
    options: Options,
) -> Sequence[Tensor | None]:
    """Return the gradients of `backward` with respect to its first six arguments.

    The reference computes them. directions: gradients of the four results of `backward`; None
    stands for zeros, and for a result that is not wanted.
    """
    if query.numel() == 0:
        return tuple(
            None if t is None else torch.zeros_like(t)
            for t in (d_output, d_lse, query, key, value, rpb)
        )
    on_map = options.within(query.shape[1:-2], rpb=rpb)
    with without_autocast(query.device):
        return reference.neighborhood_second_gradients(
            query, key, value, d_output=d_output, d_lse=d_lse, directions=directions, rpb=rpb,
            **on_map._asdict(),
        )  # fmt: skip


def _complete(
    gradients: Sequence[Tensor | None], wanted: Sequence[bool], query: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients with an empty tensor for each that is None or not wanted."""
    return tuple(
        query.new_empty(0) if gradient is None or not flag else gradient.contiguous()
        for gradient, flag in zip(gradients, wanted)
    )


def _kernels(
    names: Sequence[str], query: Tensor, rpb: Tensor | None, value: Tensor, options: Options
) -> dict[str, Kernel] | None:
    """Return the kernels for some gradients; None, after the one warning, if one is missing."""
    kernels = {}
    channels = (query.shape[-1], value.shape[-1])
    for name in ("delta", *names):
        kernel_key = options.kernel_key(name, query, *channels, rpb is not None)
        kernel = find(kernel_key)
        if kernel is None:
            report(kernel_key)
            return None
        kernels[name] = kernel
    return kernels


def _on_kernels(
    kernels: dict[str, Kernel],
    tensors: Sequence[Tensor],
    d_lse: Tensor | None,
    rpb: Tensor | None,
    options: Options,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value and rpb; None for each that has no kernel.

    tensors: query, key, value, output, lse and d_output.
    """
    # Here, so that a tensor is copied at most once, not for each kernel.
    alignment = max(kernel.alignment for kernel in kernels.values())
    query, key, value, output, lse, d_output = (ready(t, alignment) for t in tensors)
    bias: tuple[Tensor, ...] = () if rpb is None else (ready(rpb, alignment),)
    tail = options.scalars(query.shape[1:-2])
    group = query.shape[-2] // key.shape[-2]
    acc = accumulator(query.dtype)

    delta, correction = lse.new_empty(lse.shape), lse.new_empty(lse.shape)
    of_queries = (query, key, *bias, d_output, output, lse)
    launch(kernels["delta"], "delta", of_queries, (delta, correction), tail, group)
    if d_lse is not None:
        delta -= d_lse
        # A softmax of nothing but -inf is NaN, and so are its gradients. But a query whose output
        # and lse were not used has no gradient: additional tokens may be all it attends to.
        unused = lse.isneginf() & (d_lse == 0) & (d_output == 0).all(-1)
        # Any other lse is safe: exp(-inf - lse) is 0.
        lse = lse.masked_fill(unused, 0)
        delta = delta.masked_fill(unused, 0)

    def gradient(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the result of the kernel for one gradient."""
        result = query.new_empty(shape, dtype=dtype)
        inputs = (query, key, value, *bias, d_output, lse, correction, delta)
        if name == "d_value":
            inputs = (query, key, *bias, d_output, lse, correction)
        launch(kernels[name], name, inputs, (result,), tail, group)
        return result

    d_query = d_key = d_value = d_rpb = None
    if "d_query" in kernels:
        d_query = gradient("d_query", query.shape, query.dtype)
    if "d_key" in kernels:
        d_key = of_group(gradient("d_key", query.shape, key.dtype), key.shape[-2]).to(key.dtype)
    if "d_value" in kernels:
        of_heads = gradient("d_value", d_output.shape, value.dtype)
        d_value = of_group(of_heads, value.shape[-2]).to(value.dtype)
    if "d_rpb" in kernels:
        shape = bias[0].shape
        number = chunks(query, bias[0].numel() * acc.itemsize)
        d_rpb = gradient("d_rpb", (number, *shape), acc).sum(0)
    return d_query, d_key, d_value, d_rpb


def chunks(query: Tensor, chunk_bytes: int) -> int:
    """Return how many chunks the queries are cut into for the gradient of a bias.

    chunk_bytes: size of the sum over one chunk.
    """
    kind = "cuda" if query.is_cuda else "llvm"
    query_bytes = query.numel() * query.element_size()
    return chunks_of(kind, math.prod(query.shape[:-2]), query_bytes, chunk_bytes)
