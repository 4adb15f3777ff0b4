"""The operations that a library may hold: their tensors, results, and the kernels that have them.

Sizes: B batch, S one to three spatial axes, H heads, G heads of key and value, D head_dim, V
value_dim, T taps of a window in row-major order, R the axes 2*K-1 of a bias. In a function's
parameters these tensors come first, in the order given here, compact and aligned; then the scalars
of `SCALARS`. "acc" is float32, or float64 in a float64 kernel; every other tensor has the kernel's
dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from natc.spec import KernelSpec

HEADS_LAST, HEADS_FIRST = "heads_last", "heads_first"

# scale and the number of each of the spec's terms are acc; all others are int32: a dilation, a
# stride and a flag (0 or 1) for each axis, and the number of query heads that share a head of key
# and value.
SCALARS = ("scale", "terms", "dilation", "stride", "is_causal", "group")


# float32 rounds a logsumexp below this size by 4e-6 at most: less than results may be off. From
# this size on, of the lse or of the terms of a dot product, `delta` computes a correction.
EXACT_BELOW = 128.0


# The partial sums of a bias's gradient take at most this many bytes, or as many as the tensor that
# has an entry for each query if that is more.
_PARTIAL_BYTES = 4 * 2**20
# More chunks do not keep more processors busy, and a chunk has at least so many queries.
_MOST_CHUNKS = {"llvm": 64, "cuda": 8192}
_QUERIES_OF_A_CHUNK = 32

# Tensors that only kernels with a bias have.
_OF_BIAS = ("rpb", "d_rpb")

# The longest window on an axis, and the most channels, of kernels that have `gradients`. On maps
# of rank 1, windows of any length have it.
_SWEPT_WINDOW, _SWEPT_CHANNELS = 15, 128


def _is_swept(spec: KernelSpec) -> bool:
    """Return whether kernels of a spec have `gradients`."""
    return (
        spec.dtype != "float64"
        and not spec.terms
        and min(spec.kernel_size) > 1
        and (spec.rank == 1 or max(spec.kernel_size) <= _SWEPT_WINDOW)
        and spec.head_dim % 8 == 0
        and spec.head_dim <= _SWEPT_CHANNELS
    )


@dataclass(frozen=True)
class Operation:
    """One operation.

    tensors: parameters in order; `rpb` and `d_rpb` are there only in kernels with a bias.
    result: the last tensors that it writes.
    layout: heads-last `[B, *S, H, channels]` or heads-first `[B, H, *S, channels]`.
    family: `forward`, `backward` (of the fused operation) or `unfused`.
    needs_rpb: only kernels with a bias have it.
    one_head_dim: only kernels whose value_dim is their head_dim have it.
    kinds: of the targets whose kernels have it. covers: tells whether kernels of a spec have it,
        besides these conditions.

    Unfused operations are only in kernels without `natc.spec.TERMS`.
    """

    name: str
    tensors: tuple[str, ...]
    results: tuple[str, ...]
    layout: str
    family: str
    needs_rpb: bool = False
    one_head_dim: bool = False
    kinds: tuple[str, ...] = ("llvm", "cuda")
    covers: Callable[[KernelSpec], bool] = lambda spec: True

    def tensors_of(self, rpb: bool) -> tuple[str, ...]:
        """Return the tensors of kernels with a bias, or of kernels without one."""
        return tuple(name for name in self.tensors if rpb or name not in _OF_BIAS)

    def results_of(self, rpb: bool) -> tuple[str, ...]:
        """Return the results of kernels with a bias, or of kernels without one."""
        return tuple(name for name in self.results if rpb or name not in _OF_BIAS)

    @property
    def with_lse(self) -> bool:
        """Whether the logsumexp is a result."""
        return "lse" in self.results

    @property
    def packed(self) -> bool:
        """Whether query, key and value are one tensor."""
        return "qkv" in self.tensors


FORWARD, FORWARD_LSE, GRADIENTS = "forward", "forward_lse", "gradients"

_QKV = ("query", "key", "value", "rpb")
_OF_PAIRS = (*_QKV, "d_output", "lse", "correction", "delta")
_OPERATIONS = (
    # output [B, *S, H, V]; lse acc [B, *S, H], the natural logarithm of the sum of exponentials.
    Operation(FORWARD, (*_QKV, "output"), ("output",), HEADS_LAST, "forward"),
    Operation(FORWARD_LSE, (*_QKV, "output", "lse"), ("output", "lse"), HEADS_LAST, "forward"),
    # qkv [B, *S, 3, H, D]: the output of one linear layer, which the kernel reads in place.
    Operation(
        "forward_packed", ("qkv", "rpb", "output"), ("output",), HEADS_LAST, "forward",
        one_head_dim=True,
    ),
    Operation(
        "forward_lse_packed", ("qkv", "rpb", "output", "lse"), ("output", "lse"), HEADS_LAST,
        "forward", one_head_dim=True,
    ),
    # delta acc [B, *S, H]: the sum of d_output * output over channels. The input delta of the
    # gradients below is this sum less the gradient of lse. correction acc [B, *S, H]: the
    # logarithm of the sum of exp(logit - lse) over the query's keys, of logits as the gradients
    # compute them; 0 if it would make no difference (EXACT_BELOW), or if lse is not finite.
    Operation(
        "delta",
        ("query", "key", "rpb", "d_output", "output", "lse", "delta", "correction"),
        ("delta", "correction"), HEADS_LAST, "backward",
    ),
    Operation("d_query", (*_OF_PAIRS, "d_query"), ("d_query",), HEADS_LAST, "backward"),
    # d_key [B, *S, H, D] and d_value [B, *S, H, V]: one for each head of the query.
    Operation("d_key", (*_OF_PAIRS, "d_key"), ("d_key",), HEADS_LAST, "backward"),
    Operation(
        "d_value", ("query", "key", "rpb", "d_output", "lse", "correction", "d_value"),
        ("d_value",), HEADS_LAST, "backward",
    ),
    # partial acc [chunks, H, *R]: the sum over chunks is the gradient of rpb.
    Operation(
        "d_rpb", (*_OF_PAIRS, "partial"), ("partial",), HEADS_LAST, "backward", needs_rpb=True
    ),
    # All gradients at once, if no axis has a stride or is causal, and every dilation group is as
    # long as the window. d_lse acc [B, *S, H] is the gradient of the logsumexp. d_key and d_value:
    # one for each query head. d_rpb acc [H, *R]. Tensors may have any strides but for rpb and
    # d_rpb, which are compact, and channels, which are adjacent.
    Operation(
        GRADIENTS,
        (*_QKV, "d_output", "d_lse", "d_query", "d_key", "d_value", "d_rpb"),
        ("d_query", "d_key", "d_value", "d_rpb"), HEADS_LAST, "backward",
        one_head_dim=True, kinds=("llvm",), covers=_is_swept,
    ),
    # attn [B, H, *S, T]. One more scalar follows: fill (acc), the value for a tap without a key.
    Operation(
        "qk", ("query", "key", "rpb", "attn"), ("attn",), HEADS_FIRST, "unfused",
        one_head_dim=True,
    ),
    Operation(
        "av", ("attn", "value", "output"), ("output",), HEADS_FIRST, "unfused", one_head_dim=True
    ),
    # At key j the sum, over queries i that attend to j, of attn[i, tap of j] * vector[i].
    Operation(
        "inverse_av", ("attn", "vector", "result"), ("result",), HEADS_FIRST, "unfused",
        one_head_dim=True,
    ),
    Operation(
        "sum_rpb", ("d_attn", "partial"), ("partial",), HEADS_FIRST, "unfused", needs_rpb=True,
        one_head_dim=True,
    ),
)  # fmt: skip
OPERATIONS = {operation.name: operation for operation in _OPERATIONS}
FAMILIES = ("forward", "backward", "unfused")
KINDS = ("llvm", "cuda")


def chunks_of(kind: str, queries: int, query_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks the queries are cut into for the gradient of a bias.

    It depends only on sizes and the kind of target, so that the order of additions, hence every
    bit, is the same on every run. query_bytes: size of the tensor that has an entry for each
    query. chunk_bytes: size of the sum over one chunk.
    """
    room = max(_PARTIAL_BYTES, query_bytes) // max(chunk_bytes, 1)
    return max(1, min(_MOST_CHUNKS[kind], queries // _QUERIES_OF_A_CHUNK, room))


def tuned_as(operation: str) -> str:
    """Return the operation whose schedule `operation` takes: all forwards take `forward`'s."""
    return FORWARD if OPERATIONS[operation].family == "forward" else operation


def operations_of(
    spec: KernelSpec, families: tuple[str, ...] = FAMILIES, kind: str | None = None
) -> tuple[str, ...]:
    """Return the names of the operations of some families that a kernel's library holds.

    kind: of the library's target; None stands for any, and for operations that all kinds have.
    """
    kinds = set(KINDS if kind is None else (kind,))
    return tuple(
        operation.name
        for operation in _OPERATIONS
        if operation.family in families
        and kinds <= set(operation.kinds)
        and operation.covers(spec)
        and (spec.rpb or not operation.needs_rpb)
        and (spec.value_dim == spec.head_dim or not operation.one_head_dim)
        and (not spec.terms or operation.family != "unfused")
    )


# The groups of operations that the first call of a missing kernel builds: one forward or all
# gradients at once, if the call needs nothing else, or else a whole family, whose operations run
# together. A group's name is also the name of its directory in the cache.
CALLED_TOGETHER = (
    *(operation.name for operation in _OPERATIONS if operation.family == "forward"),
    GRADIENTS,
    "backward",
    "unfused",
)


def called_with(operation: str) -> str:
    """Return the entry of CALLED_TOGETHER that an operation belongs to."""
    return operation if operation in CALLED_TOGETHER else OPERATIONS[operation].family


def operations_called(spec: KernelSpec, group: str) -> tuple[str, ...]:
    """Return the operations of a kernel that an entry of CALLED_TOGETHER stands for."""
    if group in OPERATIONS:
        return (group,)
    return operations_of(spec, (group,))


def contents(spec: KernelSpec, operations: Iterable[str]) -> list[str]:
    """Return the families that a library has completely, then its remaining operations.

    spec: the library's. operations: the names of its operations, as in its manifest.
    """
    remaining = list(operations)
    families = []
    for family in FAMILIES:
        members = operations_of(spec, (family,))
        if members and set(members) <= set(remaining):
            families.append(family)
            remaining = [name for name in remaining if OPERATIONS[name].family != family]
    return families + sorted(remaining)
