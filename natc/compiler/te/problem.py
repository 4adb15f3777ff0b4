"""The sizes, tensors and loop variables that the definitions of all operations share.

Definitions are written once for every rank. Loop variables have fixed names, by which design
spaces find their loops: b (batch), i0 .. i2 (position on each axis), h (head), t0 .. t2 (tap of
each axis), t (taps flattened, row-major), d (channel).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.exponential import Exponential, base_two, fenced
from natc.operations import HEADS_FIRST
from natc.spec import KernelSpec


def stage(
    shape: Sequence[Any], names: Sequence[str], value: Callable[..., Expr], name: str
) -> te.Tensor:
    """Return te.compute(shape, value, name) with loop variables of the given names."""

    def named(*indices: tirx.Var) -> Expr:
        return value(*indices)

    # te.compute names its variables after the parameters of the function.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return te.compute(tuple(shape), named, name)


class Packed:
    """Query, key or value as a view of a tensor that holds all three; indexed like a tensor."""

    def __init__(self, qkv: te.Tensor, which: int, name: str) -> None:
        self.name, self._qkv, self._which = name, qkv, which
        self.shape = (*qkv.shape[:-3], *qkv.shape[-2:])

    def __call__(self, *indices: Any) -> Expr:
        """Return an element at `[b, *s, h, d]`, as te.Tensor does."""
        *outer, head, channel = indices
        return self._qkv(*outer, self._which, head, channel)


class HeadsFirst:
    """A view of a heads-first tensor that is indexed as if heads came last."""

    def __init__(self, tensor: te.Tensor, name: str) -> None:
        self.name, self._tensor = name, tensor
        batch, heads, *sizes, channels = tensor.shape
        self.shape = (batch, *sizes, heads, channels)

    def __call__(self, *indices: Any) -> Expr:
        """Return an element at `[b, *s, h, d]`, as te.Tensor does."""
        batch, *positions, head, channel = indices
        return self._tensor(batch, head, *positions, channel)


Vectors: TypeAlias = te.Tensor | Packed | HeadsFirst


class Problem:
    """The variables of a call of a kernel, its tensors, and their indexing.

    layout: heads-last `[B, *S, H, channels]` or heads-first `[B, H, *S, channels]`.
    exponential: the function for float32; float64 takes the compiler's own.
    example: (batch, *sizes, heads), constants instead of variables. Scale is then the default,
        dilation, stride and the number of each term are 1, no axis is causal, key and value have
        as many heads as the query, and only tensors are parameters.
    """

    def __init__(
        self,
        spec: KernelSpec,
        layout: str,
        exponential: Exponential,
        example: Sequence[int] | None = None,
    ) -> None:
        self.spec, self.layout, self.rank = spec, layout, spec.rank
        self.accumulator = spec.accumulator
        axes = range(spec.rank)
        self.scale: Any = te.var("scale", self.accumulator)
        self.terms: dict[str, Any] = {name: te.var(name, self.accumulator) for name in spec.terms}
        self.dilation: list[Any] = [te.var(f"dilation_{a}") for a in axes]
        self.stride: list[Any] = [te.var(f"stride_{a}") for a in axes]
        self.is_causal: list[Any] = [te.var(f"is_causal_{a}") for a in axes]
        self.group: Any = te.var("group")
        self.scalars = [
            self.scale, *self.terms.values(), *self.dilation, *self.stride, *self.is_causal,
            self.group,
        ]  # fmt: skip
        self.batch: Any = te.var("batch")
        self.sizes: list[Any] = [te.var(f"size_{a}") for a in axes]
        self.heads: Any = te.var("heads")
        self.heads_kv: Any = te.var("heads_kv")
        if example is not None:
            self.batch, *self.sizes, self.heads = example
            self.heads_kv, self.group, self.scalars = self.heads, 1, []
            self.scale = tirx.const(spec.head_dim**-0.5, self.accumulator)
            self.terms = dict.fromkeys(spec.terms, tirx.const(1.0, self.accumulator))
            self.dilation, self.stride = [1] * spec.rank, [1] * spec.rank
            self.is_causal = [False] * spec.rank
        self._exponential = exponential
        self._kv_tensors: list[Vectors] = []

        positions = [f"i{a}" for a in axes]
        self.site_names = self.order("b", positions, "h")
        self.site_shape = self.order(self.batch, self.sizes, self.heads)
        self.tap_names = [f"t{a}" for a in axes]
        # Stages for indices, which a schedule keeps in registers. On a GPU they are quotients of
        # the block's number, and would otherwise be divided again for every tap.
        self._batch_at = stage((self.batch,), ["b"], lambda b: b, "batch_index")
        self._head_at = stage((self.heads,), ["h"], lambda h: h, "head_index")
        self._kv_head_at = stage(
            (self.heads,), ["h"], lambda h: tirx.truncdiv(h, self.group), "kv_head_index"
        )

    def order(self, batch: Any, positions: Sequence[Any], head: Any) -> list[Any]:
        """Return the axes of a site, or their indices, in the order of the layout."""
        if self.layout == HEADS_FIRST:
            return [batch, head, *positions]
        return [batch, *positions, head]

    def parts(self, site: Sequence[Any]) -> tuple[Any, list[Any], Any]:
        """Return batch, positions and head of indices in the order of the layout."""
        if self.layout == HEADS_FIRST:
            return site[0], list(site[2:]), site[1]
        return site[0], list(site[1:-1]), site[-1]

    def tensor(self, name: str, *channels: int, dtype: str | None = None) -> te.Tensor:
        """Return an input with the query's heads; its last axes are `channels`, if any."""
        return te.placeholder((*self.site_shape, *channels), dtype or self.spec.dtype, name)

    def kv_tensor(self, name: str, channels: int) -> te.Tensor:
        """Return an input with the heads of key and value."""
        shape = self.order(self.batch, self.sizes, self.heads_kv)
        tensor = te.placeholder((*shape, channels), self.spec.dtype, name)
        self._kv_tensors.append(tensor)
        return tensor

    def attention_inputs(
        self, *, packed: bool
    ) -> tuple[list[te.Tensor], Vectors, Vectors, Vectors]:
        """Return (inputs, query, key, value); views of one input `[B, *S, 3, H, D]` if packed."""
        if packed:
            shape = (self.batch, *self.sizes, 3, self.heads, self.spec.head_dim)
            qkv = te.placeholder(shape, self.spec.dtype, "qkv")
            names = ("query", "key", "value")
            query, key, value = (Packed(qkv, which, name) for which, name in enumerate(names))
            return [qkv], query, key, value
        inputs = [
            self.tensor("query", self.spec.head_dim),
            self.kv_tensor("key", self.spec.head_dim),
            self.kv_tensor("value", self.spec.value_dim),
        ]
        return inputs, *inputs

    def copied(self, tensor: Vectors) -> HeadsFirst:
        """Return heads-last vectors as a stage, heads first and in the accumulator's dtype."""
        batch, *sizes, heads, channels = tensor.shape
        copy = stage(
            (batch, heads, *sizes, channels),
            ["b", "h", *(f"i{axis}" for axis in range(self.rank)), "d"],
            lambda b, h, *at: self.accumulate(tensor(b, *at[:-1], h, at[-1])),
            f"{tensor.name}_copied",
        )
        view = HeadsFirst(copy, tensor.name)
        if self._is_kv(tensor):
            self._kv_tensors.append(view)
        return view

    def bias(self) -> te.Tensor:
        """Return the relative positional bias, `[H, 2*K-1 of each axis]`."""
        sizes = (2 * k - 1 for k in self.spec.kernel_size)
        return te.placeholder((self.heads, *sizes), self.accumulator, "rpb")

    def read(
        self,
        tensor: Vectors,
        site: Sequence[Any],
        positions: Sequence[Any],
        *channel: Any,
    ) -> Expr:
        """Return a tensor's element at `positions`, in the batch entry and head of `site`."""
        batch, head = self.entry(tensor, site)
        return tensor(*self.order(batch, positions, head), *channel)

    def entry(self, tensor: Vectors, site: Sequence[Any]) -> tuple[Expr, Expr]:
        """Return the batch entry and the head at which a site reads a tensor."""
        b, _, h = self.parts(site)
        heads = self._kv_head_at if self._is_kv(tensor) else self._head_at
        return self._batch_at[b], heads[h]

    def _is_kv(self, tensor: Vectors) -> bool:
        return any(tensor is kv_tensor for kv_tensor in self._kv_tensors)

    def bias_at(self, rpb: te.Tensor, site: Sequence[Any], offsets: Sequence[Any]) -> Expr:
        """Return the element of `rpb` for a site's head, at one offset index for each axis."""
        _, _, h = self.parts(site)
        return rpb(self._head_at[h], *offsets)

    def exp(self, x: Expr) -> Expr:
        """Return the exponential of an expression of the accumulator's dtype."""
        return te.exp(x) if self.accumulator == "float64" else self._exponential(x)

    def as_written(self, x: Expr) -> Expr:
        """Return x of the accumulator's dtype, rounded before it enters a further sum.

        LLVM may reorder sums (`natc.compiler.build.lower`); CUDA's compiler never does.
        """
        return x if self._exponential is base_two else fenced(x, self.accumulator)

    def accumulate(self, x: Expr) -> Expr:
        """Return x in the accumulator's dtype."""
        return x if self.spec.dtype == self.accumulator else x.astype(self.accumulator)

    def rounded(self, x: Expr) -> Expr:
        """Return x, of the accumulator's dtype, in the kernel's."""
        return x if self.spec.dtype == self.accumulator else x.astype(self.spec.dtype)

    def const(self, value: float) -> Expr:
        """Return a constant of the accumulator's dtype."""
        return tirx.const(value, self.accumulator)

    def function(self, tensors: Sequence[te.Tensor | None], *extra: Any) -> tirx.PrimFunc:
        """Return the function whose parameters are tensors (but None), scalars and `extra`."""
        return te.create_prim_func([*(t for t in tensors if t is not None), *self.scalars, *extra])
